// The tables that the host lays out in device memory. `crates/tpgm-cuda/src/tables.rs` mirrors every struct here, field by
// field; both sides check the sizes.
#pragma once

#include "platform.cuh"

enum Type : uint32_t { F64, F32, F16, BF16 };

enum Slot : uint32_t {
    MASTER, EXP_AVG, EXP_AVG_SQ, MAX_EXP_AVG_SQ, MOMENTUM_BUFFER, DISPLACEMENT, ROW_SCALE, REMEMBERED, IMPORTANCE, SLOTS
};

enum Norm : uint32_t { NO_NORM, L2, MARS };

enum Constraint : uint32_t { NONE, FIXED_RADIUS, FIXED_SCALE, TPGM, FTP, SPD, DIGRAP, L2_SP, PULL_TERMS };

// `Settings::variant`
enum FtpMemory : uint32_t { EXACT, LOW };
enum DigrapTest : uint32_t { CONFLICT, AGREEMENT };
enum Coupling : uint32_t { COUPLED, DECOUPLED };

// `Settings::importance`: what the elements of a pull are weighted by.
enum Importance : uint32_t { ALIKE, FISHER, RUNNING, GATE };

enum RuleKind : uint32_t { HOLD, ADAMW, SGD };

// What applies to a tensor.
struct Settings {
    double lr_scale, weight_decay;
    double strength;  // radius, k, lambda or alpha
    double anchor_l2, anchor_l1, zero_l2, zero_l1;  // of a pull, over what its sum is divided by
    double importance_rate;                         // decay of a running importance, threshold of a gate
    double adam_lr, adam_beta1, adam_beta2, adam_eps;
    uint32_t constraint, norm, variant, importance;
};
static_assert(sizeof(Settings) == 112, "");

// How a tensor is cut: see `tpgm_core::plan`.
struct Tensor {
    uint64_t numel, units, unit_len, parts, first_unit, first_part;
    uint32_t type;
    uint32_t pieces;               // how many have to arrive before the tensor is settled
    uint32_t first_span, spans;    // of the measuring phase
    Settings settings;
};
static_assert(sizeof(Tensor) == 176, "");

// Where a tensor's operands are; 0 for none. The only table that changes from call to call, with `Job`.
struct Operands {
    uint64_t weight, grad, anchor, variance, anchor_variance;
    uint64_t slots[SLOTS];
    uint32_t grad_type, anchor_type, variance_type, anchor_variance_type;
};
static_assert(sizeof(Operands) == 128, "");

// Whole units, or one part of a long one.
struct Piece {
    uint64_t start, end, unit, part;
    uint32_t tensor, units;
};
static_assert(sizeof(Piece) == 40, "");

// Consecutive pieces of a tensor that one block measures.
struct Span {
    uint32_t tensor, first_piece, pieces, pad;
};

enum ItemKind : uint32_t { ADVANCE, PULL, SETTLE };

// One entry of the queue of the moving phase.
struct Item {
    uint32_t kind, tensor, first_piece, pieces;
};

// Mirrors `tpgm_core::TensorScalars`.
struct Scalars {
    double step, radius, radius_m, radius_v, radius_step, initialized;
    double previous_coefficient, previous_norm, master_filled;
    double radius_grad_raw, radius_grad, radius_unclipped, alignment, norm, ratio, fire_rate;
};
static_assert(sizeof(Scalars) == 128, "");

// What the measuring phase finds; `bad` counts what is not finite.
struct Sums {
    double square, dot, displacement, previous, bad;
};
static_assert(sizeof(Sums) == 40, "");

enum PullKind : uint32_t { KEEP, FIXED, LEARNED, SELECTIVE };

// How far a displacement is pulled back, given its norm.
struct Pull {
    double radius;  // or SPD's strength
    double before;  // SPD: the norm before the step
    uint32_t kind, pad;
};

// How a tensor moves in this step: what the deciding phase tells the moving phase.
struct Move {
    double clip, decay, pull_grad, lr_decay, lr_pull;  // how gradient, decay and anchor enter
    // Pulls with absolute values or an importance: factors on displacement, its sign, weight, its sign; and on the gradient where the
    // pull joins it, or on the pull where it goes beside it.
    double anchor_l2, anchor_l1, zero_l2, zero_l1, term_scale;
    double k[7];                                       // constants of the rule
    double pulls_from;    // units with at least this norm need not wait for others to be pulled back
    double waited_below;  // units with less than this norm are pulled back in the second pass
    double scale_radius;  // bound of the per-element rule; 0 for none
    Pull pull;
    uint32_t skip, rule, flag, norm;       // flag: AMSGrad, or momentum
    uint32_t keep_before, keep_after;      // which displacement goes to its slot
    uint32_t row_scale;                    // FTP: 1 + FtpMemory
    uint32_t deferred, fresh_master;
    uint32_t terms;                        // 1 + Coupling of such a pull
};
static_assert(sizeof(Move) == 224, "");

// Counters of one tensor. All values are those of an untouched tensor between launches.
struct Progress {
    uint64_t smallest, largest, ratio;  // bits of doubles that are not negative, which order as integers do
    uint64_t pulled;
    uint32_t arrived, measured, settled, bad;
};
static_assert(sizeof(Progress) == 48, "");

constexpr uint64_t BITS_OF_INFINITY = 0x7ff0000000000000ull;
constexpr uint64_t BITS_OF_ONE = 0x3ff0000000000000ull;

// Counters of a launch; zero between launches.
struct Counters {
    uint32_t ticket, exited, measured, arrived;
};

enum Refusal : uint32_t { ACCEPTED, BAD_GRADIENT, BAD_PRODUCT, BAD_DISPLACEMENT };

// What a call says of itself; the host reads it when it likes.
struct Status {
    double grad_norm;
    uint32_t refused, first, count, pad;
};
static_assert(sizeof(Status) == 24, "");

enum WriteKind : uint32_t { TRIAL, PROJECTION, REMEMBERED_WEIGHTS };

// Everything a kernel works on.
struct Job {
    const Tensor* tensors;
    const Operands* operands;
    const Piece* pieces;
    const Span* spans;
    const Item* items;
    Scalars* scalars;
    Move* moves;
    Sums* span_sums;
    Sums* tensor_sums;
    double* parts;
    double* norms;
    Progress* progress;
    Counters* counters;
    Status* status;
    uint32_t tensor_count, piece_count, span_count, item_count;
    uint32_t rule, flag;       // flag: AMSGrad, or Nesterov
    uint32_t coupled;          // weight decay enters through the gradient
    uint32_t trusted, defer, write;
    uint32_t importance, pad;  // importance is measured, for no step
    double lr, grad_scale, max_grad_norm;  // no clipping: 0
    double beta1, beta2, eps;              // AdamW
    double momentum, dampening;            // SGD
    double keep, take;                     // blending
};
static_assert(sizeof(Job) == 240, "");

template <class T>
__device__ inline T* at(uint64_t address) {
    return reinterpret_cast<T*>(address);
}
