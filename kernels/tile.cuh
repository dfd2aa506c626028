// Who holds what: a block takes a piece row by row, a row is held by a group of threads, a thread holds up to four quads of
// it in registers. So a row that fits into a piece is read once and written once, whatever has to be known of it between.
#pragma once

#include "element.cuh"

constexpr int QUAD = 4;
constexpr int QUADS = 4;
constexpr int PER_THREAD = QUAD * QUADS;

// A row, or the part of one that a piece has, and this thread's place in the group that holds it.
struct Place {
    uint64_t start;   // first element, counted within the tensor
    uint64_t unit;    // which unit of the tensor
    uint32_t len;     // elements; 0 if the group has no row in this round
    uint32_t lane;    // of this thread in its group
    uint32_t width;   // threads of a group: a power of two

    // First element of the thread's `j`-th quad, counted from `start`: neighbors in the group hold neighboring quads.
    __device__ uint32_t quad(int j) const { return (j * width + lane) * QUAD; }
};

// The rounds in which a block goes through the rows of a piece.
struct Rounds {
    const Piece& piece;
    uint64_t row_len;
    uint32_t width, groups;

    __device__ Rounds(const Tensor& tensor, const Piece& piece) : piece(piece) {
        row_len = tensor.parts > 1 ? piece.end - piece.start : tensor.unit_len;
        // As few threads as can hold the row: the fewer, the more rows at a time.
        width = 1;
        while (width * PER_THREAD < row_len) width *= 2;
        groups = THREADS / width;
    }

    __device__ uint32_t count() const { return (piece.units + groups - 1) / groups; }

    __device__ Place place(uint32_t round) const {
        uint32_t row = round * groups + threadIdx.x / width;
        bool there = row < piece.units;
        return {piece.start + row * row_len, piece.unit + row, there ? static_cast<uint32_t>(row_len) : 0,
                threadIdx.x % width, width};
    }
};

// A thread's elements of a row in compute type.
template <class C> struct Tile {
    C x[QUADS][QUAD];
};

// Up to four elements, `valid` of which are there, one by one. Not inlined: rows that are not aligned or not a multiple of four
// long are rare, and kernels with this at every access would be three times as long.
template <class S> __device__ TPGM_NOINLINE inline Quad<S> load_slowly(const S* p, int64_t valid) {
    Quad<S> quad;
    #pragma unroll
    for (int i = 0; i < QUAD; i++) quad.x[i] = i < valid ? p[i] : S{};
    return quad;
}

template <class S> __device__ TPGM_NOINLINE inline void store_slowly(S* p, Quad<S> quad, int64_t valid) {
    #pragma unroll
    for (int i = 0; i < QUAD; i++) {
        if (i < valid) p[i] = quad.x[i];
    }
}

// Elements of a row from the `e`-th on.
__device__ inline int64_t valid(const Place& place, uint32_t e) { return int64_t(place.len) - int64_t(e); }

template <bool ONCE, class C, class S>
__device__ inline void load_as(Tile<C>& tile, const S* row, const Place& place) {
    Quad<S> raw[QUADS];
    // All loads first: nothing here waits for what it has asked for.
    if (aligned(row) && place.len % QUAD == 0) {
        #pragma unroll
        for (int j = 0; j < QUADS; j++) raw[j] = place.quad(j) < place.len ? read_quad<ONCE>(row + place.quad(j)) : Quad<S>{};
    } else {
        #pragma unroll
        for (int j = 0; j < QUADS; j++) raw[j] = load_slowly(row + place.quad(j), valid(place, place.quad(j)));
    }
    #pragma unroll
    for (int j = 0; j < QUADS; j++) {
        #pragma unroll
        for (int i = 0; i < QUAD; i++) tile.x[j][i] = static_cast<C>(widen(raw[j].x[i]));
    }
}

template <class C> __device__ inline void clear(Tile<C>& tile) {
    #pragma unroll
    for (int j = 0; j < QUADS; j++) {
        #pragma unroll
        for (int i = 0; i < QUAD; i++) tile.x[j][i] = C(0);
    }
}

// One quad of what nobody reads again in this launch.
template <class S, class C>
__device__ inline void load_quad_as(C (&x)[QUAD], const S* row, int j, const Place& place) {
    uint32_t e = place.quad(j);
    bool vector = aligned(row) && e + QUAD <= place.len;
    Quad<S> raw = vector ? read_quad<true>(row + e) : load_slowly(row + e, valid(place, e));
    #pragma unroll
    for (int i = 0; i < QUAD; i++) x[i] = static_cast<C>(widen(raw.x[i]));
}

template <bool ONCE, class S, class C>
__device__ inline void store_quad(S* row, const C (&x)[QUAD], int j, const Place& place) {
    uint32_t e = place.quad(j);
    Quad<S> quad{{narrow<S>(x[0]), narrow<S>(x[1]), narrow<S>(x[2]), narrow<S>(x[3])}};
    if (aligned(row) && e + QUAD <= place.len) write_quad<ONCE>(row + e, quad);
    else store_slowly(row + e, quad, valid(place, e));
}

template <bool ONCE, class S, class C>
__device__ inline void store_as(S* row, const Tile<C>& tile, const Place& place) {
    #pragma unroll
    for (int j = 0; j < QUADS; j++) store_quad<ONCE>(row, tile.x[j], j, place);
}

// How operands are stored: all as `S` but anchors as `A`, known when the kernel is compiled; or each as its type in the
// tables says. The second costs a call per quad, and serves sets that mix types in other ways. `Anchors` is the storage of
// anchors, their variances, and averages.
template <class S, class A = S> struct Stored {
    using Anchors = Stored<A>;
    static constexpr bool HALF = sizeof(S) == 2;
    template <bool ONCE, class C>
    __device__ static void load(Tile<C>& tile, uint64_t address, uint32_t, const Place& place) {
        load_as<ONCE>(tile, at<S>(address) + place.start, place);
    }
    template <class C>
    __device__ static void load_quad(C (&x)[QUAD], uint64_t address, uint32_t, int j, const Place& place) {
        load_quad_as(x, at<S>(address) + place.start, j, place);
    }
    template <bool ONCE, class C>
    __device__ static void store(const Tile<C>& tile, uint64_t address, uint32_t, const Place& place) {
        store_as<ONCE>(at<S>(address) + place.start, tile, place);
    }
};

template <class C, class S> __device__ inline Quad<C> widened(const S* p, int64_t valid) {
    Quad<S> raw = valid >= QUAD && aligned(p) ? read_quad<false>(p) : load_slowly(p, valid);
    Quad<C> out;
    #pragma unroll
    for (int i = 0; i < QUAD; i++) out.x[i] = static_cast<C>(widen(raw.x[i]));
    return out;
}

template <class C> __device__ TPGM_NOINLINE inline Quad<C> load_any(uint64_t address, uint32_t type, uint64_t e, int64_t valid) {
    switch (type) {
        case F64: return widened<C>(at<double>(address) + e, valid);
        case F32: return widened<C>(at<float>(address) + e, valid);
        case F16: return widened<C>(at<Half>(address) + e, valid);
        default: return widened<C>(at<Bfloat>(address) + e, valid);
    }
}

template <class S, class C> __device__ inline void narrowed(S* p, const Quad<C>& x, int64_t valid) {
    store_slowly(p, Quad<S>{{narrow<S>(x.x[0]), narrow<S>(x.x[1]), narrow<S>(x.x[2]), narrow<S>(x.x[3])}}, valid);
}

template <class C>
__device__ TPGM_NOINLINE inline void store_any(Quad<C> x, uint64_t address, uint32_t type, uint64_t e, int64_t valid) {
    switch (type) {
        case F64: narrowed(at<double>(address) + e, x, valid); break;
        case F32: narrowed(at<float>(address) + e, x, valid); break;
        case F16: narrowed(at<Half>(address) + e, x, valid); break;
        default: narrowed(at<Bfloat>(address) + e, x, valid); break;
    }
}

struct Any {
    using Anchors = Any;
    static constexpr bool HALF = true;
    template <bool ONCE, class C>
    __device__ static void load(Tile<C>& tile, uint64_t address, uint32_t type, const Place& place) {
        #pragma unroll
        for (int j = 0; j < QUADS; j++) load_quad(tile.x[j], address, type, j, place);
    }
    template <class C>
    __device__ static void load_quad(C (&x)[QUAD], uint64_t address, uint32_t type, int j, const Place& place) {
        uint32_t e = place.quad(j);
        Quad<C> quad = load_any<C>(address, type, place.start + e, valid(place, e));
        #pragma unroll
        for (int i = 0; i < QUAD; i++) x[i] = quad.x[i];
    }
    template <bool ONCE, class C>
    __device__ static void store(const Tile<C>& tile, uint64_t address, uint32_t type, const Place& place) {
        #pragma unroll
        for (int j = 0; j < QUADS; j++) {
            uint32_t e = place.quad(j);
            const C (&x)[QUAD] = tile.x[j];
            store_any<C>({{x[0], x[1], x[2], x[3]}}, address, type, place.start + e, valid(place, e));
        }
    }
};

__device__ inline bool is_double(const Tensor& tensor) { return tensor.type == F64; }

// Runs `call` with `C` as the compute type of a tensor: the one of its storage, or what the tables say.
template <class Storage> struct Computes { static constexpr bool DOUBLE = false; };
template <> struct Computes<Any> { static constexpr bool DOUBLE = true; };
#define TPGM_IN_COMPUTE_TYPE(Storage, tensor, C, call)               \
    do {                                                             \
        if constexpr (Computes<Storage>::DOUBLE) {                   \
            if (is_double(tensor)) {                                 \
                using C = double;                                    \
                call;                                                \
                break;                                               \
            }                                                        \
        }                                                            \
        using C = float;                                             \
        call;                                                        \
    } while (false)

// A thread's elements of an operand; zeros for no operand (address 0) and beyond the row.
template <class Storage, bool ONCE, class C>
__device__ inline void load(Tile<C>& tile, uint64_t address, uint32_t type, const Place& place) {
    if (address == 0) clear(tile);
    else Storage::template load<ONCE>(tile, address, type, place);
}

template <class Storage, class C>
__device__ inline void load_anchor(Tile<C>& tile, uint64_t address, uint32_t type, const Place& place) {
    load<typename Storage::Anchors, false>(tile, address, type, place);
}

// Rounds a thread's elements into an operand.
template <class Storage, bool ONCE, class C>
__device__ inline void store(const Tile<C>& tile, uint64_t address, uint32_t type, const Place& place) {
    Storage::template store<ONCE>(tile, address, type, place);
}

// The weights as the rule knows them: of the master (f32), or as they are stored.
template <class Storage, class C>
__device__ inline void load_source(Tile<C>& tile, uint64_t master, uint64_t other, uint32_t type, const Place& place) {
    if (Storage::HALF && master) load_as<false>(tile, at<float>(master) + place.start, place);
    else load<Storage, false>(tile, other, type, place);
}

// A quad of state, which is in compute type.
template <class C> __device__ inline void load_state(C (&x)[QUAD], uint64_t address, int j, const Place& place) {
    load_quad_as(x, at<C>(address) + place.start, j, place);
}

template <class C> __device__ inline void store_state(const C (&x)[QUAD], uint64_t address, int j, const Place& place) {
    store_quad<true>(at<C>(address) + place.start, x, j, place);
}

template <class C> __device__ inline Tile<C> displacement(const Tile<C>& w, const Tile<C>& a) {
    Tile<C> d;
    #pragma unroll
    for (int j = 0; j < QUADS; j++) {
        #pragma unroll
        for (int i = 0; i < QUAD; i++) d.x[j][i] = w.x[j][i] - a.x[j][i];
    }
    return d;
}

// `w = a + ratio * (w - a)`
template <class C> __device__ inline void pull_back(Tile<C>& w, const Tile<C>& a, C ratio) {
    #pragma unroll
    for (int j = 0; j < QUADS; j++) {
        #pragma unroll
        for (int i = 0; i < QUAD; i++) w.x[j][i] = a.x[j][i] + ratio * (w.x[j][i] - a.x[j][i]);
    }
}
