//! The few numbers a method keeps per tensor.

/// Scalars of one tensor. All are f64; for tensors computed in f32 the radius holds values that f32 represents exactly.
///
/// The first block is state: saved, restored, read by the next step. The second is telemetry of the last step or
/// projection.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
#[repr(C)]
pub struct TensorScalars {
    /// Steps this tensor has taken (steps in which it had a gradient).
    pub step: f64,
    /// The learned scalar: the radius γ of TPGM and FTP, the strength ω of DiGraP.
    pub radius: f64,
    /// First Adam moment of the learned scalar.
    pub radius_m: f64,
    /// Second Adam moment of the learned scalar.
    pub radius_v: f64,
    /// Adam steps of the learned scalar (TPGM: projection updates).
    pub radius_step: f64,
    /// 1 once TPGM's radius has been initialized from the first displacement, else 0.
    pub initialized: f64,
    /// DiGraP: `<g, D> / |D|^2` of the previous step.
    pub previous_coefficient: f64,
    /// DiGraP: `|D|` of the previous step.
    pub previous_norm: f64,
    /// 1 once the master, if there is one, has been filled from the weights, else 0.
    pub master_filled: f64,

    /// Gradient of the loss by the learned scalar, before FTP's factor `k`.
    pub radius_grad_raw: f64,
    /// Gradient of the loss by the learned scalar, as its Adam saw it.
    pub radius_grad: f64,
    /// The learned scalar after Adam, before it was clipped.
    pub radius_unclipped: f64,
    /// SPD: `-<g, W - W0>`.
    pub alignment: f64,
    /// Displacement before it was pulled back: its L2 norm, or the largest MARS row norm.
    pub norm: f64,
    /// Smallest factor that a row (MARS) or the tensor (L2) was multiplied by; 1 if nothing was pulled back.
    pub ratio: f64,
    /// Share of rows (MARS), or 1 or 0 for the tensor (L2), that were pulled back.
    pub fire_rate: f64,
}

impl TensorScalars {
    /// Names of the state fields, in order.
    pub(crate) const STATE: [&'static str; 9] = [
        "step",
        "radius",
        "radius_m",
        "radius_v",
        "radius_step",
        "initialized",
        "previous_coefficient",
        "previous_norm",
        "master_filled",
    ];

    pub(crate) fn state(&self) -> [f64; 9] {
        [
            self.step,
            self.radius,
            self.radius_m,
            self.radius_v,
            self.radius_step,
            self.initialized,
            self.previous_coefficient,
            self.previous_norm,
            self.master_filled,
        ]
    }

    pub(crate) fn from_state(state: [f64; 9]) -> Self {
        let [
            step,
            radius,
            radius_m,
            radius_v,
            radius_step,
            initialized,
            previous_coefficient,
            previous_norm,
            master_filled,
        ] = state;
        Self {
            step,
            radius,
            radius_m,
            radius_v,
            radius_step,
            initialized,
            previous_coefficient,
            previous_norm,
            master_filled,
            ..Self::default()
        }
    }
}
