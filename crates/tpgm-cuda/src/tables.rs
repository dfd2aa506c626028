//! The tables in device memory: mirrors of the structs in `kernels/tables.cuh`, field by field. `Pod` makes sure that no
//! struct has padding, and both sides assert the sizes.

use bytemuck::{Pod, Zeroable};
use tpgm_core::{
    Constraint, Coupling, DType, DigrapTest, FtpMemory, Norm, PullWeights, RadiusAdam,
    Settings as CoreSettings, Slot, TensorScalars,
};

macro_rules! tables {
    ($($(#[$doc:meta])* $name:ident: $size:literal { $($(#[$field_doc:meta])* $field:ident: $type:ty,)* })*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Pod, Zeroable)]
        #[repr(C)]
        pub(crate) struct $name { $($(#[$field_doc])* pub(crate) $field: $type,)* }

        const _: () = assert!(size_of::<$name>() == $size);
    )*};
}

tables! {
    /// What applies to a tensor.
    Settings: 112 {
        lr_scale: f64,
        weight_decay: f64,
        /// Radius, k, lambda or alpha.
        strength: f64,
        /// Of a pull, over what its sum is divided by.
        anchor_l2: f64,
        anchor_l1: f64,
        zero_l2: f64,
        zero_l1: f64,
        /// Decay of a running importance, threshold of a gate.
        importance_rate: f64,
        adam_lr: f64,
        adam_beta1: f64,
        adam_beta2: f64,
        adam_eps: f64,
        constraint: u32,
        norm: u32,
        variant: u32,
        importance: u32,
    }

    /// How a tensor is cut.
    Tensor: 176 {
        numel: u64,
        units: u64,
        unit_len: u64,
        parts: u64,
        first_unit: u64,
        first_part: u64,
        dtype: u32,
        pieces: u32,
        first_span: u32,
        spans: u32,
        settings: Settings,
    }

    /// Where a tensor's operands are in device memory, 0 for none, and how they are stored.
    Operands: 128 {
        weight: u64,
        grad: u64,
        anchor: u64,
        variance: u64,
        anchor_variance: u64,
        slots: [u64; Slot::ALL.len()],
        grad_dtype: u32,
        anchor_dtype: u32,
        variance_dtype: u32,
        anchor_variance_dtype: u32,
    }

    /// Whole units, or one part of a long one.
    Piece: 40 {
        start: u64,
        end: u64,
        unit: u64,
        part: u64,
        tensor: u32,
        units: u32,
    }

    /// Consecutive pieces of a tensor that one block measures.
    Span: 16 {
        tensor: u32,
        first_piece: u32,
        pieces: u32,
        pad: u32,
    }

    /// One entry of the queue of the moving phase.
    Item: 16 {
        kind: u32,
        tensor: u32,
        first_piece: u32,
        pieces: u32,
    }

    /// Counters of one tensor.
    Progress: 48 {
        smallest: f64,
        largest: f64,
        ratio: f64,
        pulled: u64,
        arrived: u32,
        measured: u32,
        settled: u32,
        bad: u32,
    }

    /// What a call says of itself.
    Status: 24 {
        grad_norm: f64,
        refused: u32,
        first: u32,
        count: u32,
        pad: u32,
    }

    /// Everything a kernel works on: addresses of tables, and what changes from call to call.
    Job: 240 {
        tensors: u64,
        operands: u64,
        pieces: u64,
        spans: u64,
        items: u64,
        scalars: u64,
        moves: u64,
        span_sums: u64,
        tensor_sums: u64,
        parts: u64,
        norms: u64,
        progress: u64,
        counters: u64,
        status: u64,
        tensor_count: u32,
        piece_count: u32,
        span_count: u32,
        item_count: u32,
        rule: u32,
        flag: u32,
        coupled: u32,
        trusted: u32,
        defer: u32,
        write: u32,
        importance: u32,
        pad: u32,
        lr: f64,
        grad_scale: f64,
        max_grad_norm: f64,
        beta1: f64,
        beta2: f64,
        eps: f64,
        momentum: f64,
        dampening: f64,
        keep: f64,
        take: f64,
    }
}

/// Bytes of tables that only the device looks into.
pub(crate) mod bytes {
    pub(crate) const MOVE: usize = 224;
    pub(crate) const SUMS: usize = 40;
    pub(crate) const COUNTERS: usize = 16;
    pub(crate) const SCALARS: usize = 8 * tpgm_core::TensorScalars::FIELDS;
}

const _: () = assert!(TensorScalars::FIELDS == 16);

/// `ItemKind`.
pub(crate) mod item {
    pub(crate) const ADVANCE: u32 = 0;
    pub(crate) const PULL: u32 = 1;
    pub(crate) const SETTLE: u32 = 2;
}

/// `RuleKind`; 0 holds the weights.
pub(crate) mod rule {
    pub(crate) const ADAMW: u32 = 1;
    pub(crate) const SGD: u32 = 2;
}

/// `Refusal`.
pub(crate) mod refusal {
    pub(crate) const ACCEPTED: u32 = 0;
    pub(crate) const BAD_GRADIENT: u32 = 1;
    pub(crate) const BAD_PRODUCT: u32 = 2;
}

/// `WriteKind`.
pub(crate) mod write {
    pub(crate) const TRIAL: u32 = 0;
    pub(crate) const PROJECTION: u32 = 1;
    pub(crate) const REMEMBERED: u32 = 2;
}

/// `Type`.
pub(crate) const fn dtype(dtype: DType) -> u32 {
    match dtype {
        DType::F64 => 0,
        DType::F32 => 1,
        DType::F16 => 2,
        DType::BF16 => 3,
    }
}

/// `Norm`.
const fn norm(norm: Norm) -> u32 {
    match norm {
        Norm::L2 => 1,
        Norm::Mars => 2,
    }
}

impl Settings {
    /// Of a tensor of `numel` elements in a set of `all`.
    pub(crate) fn new(settings: &CoreSettings, numel: usize, all: usize) -> Self {
        let CoreSettings { lr_scale, weight_decay, .. } = *settings;
        let plain = Self { lr_scale, weight_decay, ..Self::zeroed() };
        let adam = |adam: &RadiusAdam| Self {
            adam_lr: adam.lr,
            adam_beta1: adam.beta1,
            adam_beta2: adam.beta2,
            adam_eps: adam.eps,
            ..plain
        };
        match &settings.constraint {
            Constraint::None => plain,
            Constraint::FixedRadius(c) => {
                Self { constraint: 1, strength: c.radius, norm: norm(c.norm), ..plain }
            }
            Constraint::FixedScale(c) => Self { constraint: 2, strength: c.radius, ..plain },
            Constraint::Tpgm(c) => Self { constraint: 3, norm: norm(c.norm), ..adam(&c.adam) },
            Constraint::Ftp(c) => Self {
                constraint: 4,
                strength: c.k,
                variant: u32::from(c.memory == FtpMemory::Low),
                ..adam(&c.adam)
            },
            Constraint::Spd(c) => Self { constraint: 5, strength: c.strength, ..plain },
            Constraint::Digrap(c) => {
                Self { constraint: 6, variant: u32::from(c.test == DigrapTest::Agreement), ..adam(&c.adam) }
            }
            Constraint::L2Sp(c) => Self {
                constraint: 7,
                strength: c.alpha,
                variant: u32::from(c.coupling == Coupling::Decoupled),
                ..plain
            },
            Constraint::Pull(c) => {
                let factor = c.factor(numel, all);
                let (importance, importance_rate) = match c.weights {
                    PullWeights::One => (0, 0.0),
                    PullWeights::Fisher => (1, 0.0),
                    PullWeights::Running { decay } => (2, decay),
                    PullWeights::Gate { threshold } => (3, threshold),
                };
                Self {
                    constraint: 8,
                    anchor_l2: factor * c.anchor_l2,
                    anchor_l1: factor * c.anchor_l1,
                    zero_l2: factor * c.zero_l2,
                    zero_l1: factor * c.zero_l1,
                    variant: u32::from(c.coupling == Coupling::Decoupled),
                    importance,
                    importance_rate,
                    ..plain
                }
            }
        }
    }
}

impl Progress {
    /// Of a tensor that nothing has touched.
    pub(crate) const UNTOUCHED: Self = Self {
        smallest: f64::INFINITY,
        largest: 0.0,
        ratio: 1.0,
        pulled: 0,
        arrived: 0,
        measured: 0,
        settled: 0,
        bad: 0,
    };
}
