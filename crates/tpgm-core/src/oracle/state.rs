//! What the drivers remember of a tensor.

/// Moments of the rule; a vector is empty until the first step that uses it.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Moments {
    /// First moment of AdamW.
    pub exp_avg: Vec<f64>,
    /// Second moment of AdamW, without bias correction.
    pub exp_avg_sq: Vec<f64>,
    /// Running maximum of the second moment (AMSGrad).
    pub max_exp_avg_sq: Vec<f64>,
    /// Momentum buffer of SGD.
    pub momentum_buffer: Vec<f64>,
}

/// A learned scalar and its Adam: the radius of TPGM and FTP, the strength ω of DiGraP.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Radius {
    /// Its value; 0 before the first step or traversal.
    pub value: f64,
    /// Its first moment.
    pub m: f64,
    /// Its second moment.
    pub v: f64,
    /// Step number of its latest bias correction: updates of the radius (TPGM), steps of the tensor (FTP, DiGraP).
    pub t: u64,
}

/// Intermediate results of the latest call that touched a tensor. `None` or empty: not part of that call.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Trace {
    /// What the rule wanted to subtract, learning rate and decoupled terms included.
    pub update: Vec<f64>,
    /// Norms that the projection used: one (L2) or one per row (MARS); FTP's contain their 1e-8.
    pub norms: Vec<f64>,
    /// What the displacement was multiplied by, per norm.
    pub ratios: Vec<f64>,
    /// The radius as a traversal of the projector found it.
    pub radius_before: Option<f64>,
    /// The radius before the clip: after initialization (TPGM), after the Adam step (FTP, DiGraP).
    pub radius_unclipped: Option<f64>,
    /// Radius gradient as computed.
    pub radius_grad_raw: Option<f64>,
    /// Radius gradient that Adam saw; differs from the raw one by FTP's `k`.
    pub radius_grad: Option<f64>,
    /// SPD: `-<g, W - W0>`. DiGraP: `<g, W - W0>`.
    pub alignment: Option<f64>,
    /// SPD's ratio, where the alignment was below zero.
    pub spd_ratio: Option<f64>,
}

/// Running variances of a normalization layer, for [`fixed_scale`](super::fixed_scale).
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Variances {
    /// The layer's current ones.
    pub current: Vec<f64>,
    /// Those of the pre-trained layer.
    pub anchor: Vec<f64>,
}
