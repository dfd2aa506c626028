//! The few numbers a method keeps per tensor.

/// Defines [`TensorScalars`] and everything that lists its fields.
macro_rules! tensor_scalars {
    (state { $($(#[$state_doc:meta])* $state:ident,)* } telemetry { $($(#[$doc:meta])* $telemetry:ident,)* }) => {
        /// Scalars of one tensor. All are f64; for tensors computed in f32 the radius holds values that f32 represents
        /// exactly.
        ///
        /// The first block is state: saved, restored, read by the next step. The second, from `radius_grad_raw` on, is
        /// telemetry of the last step or projection.
        #[derive(Debug, Clone, Copy, PartialEq, Default)]
        #[repr(C)]
        pub struct TensorScalars {
            $($(#[$state_doc])* pub $state: f64,)*
            $($(#[$doc])* pub $telemetry: f64,)*
        }

        impl TensorScalars {
            /// Number of fields.
            pub const FIELDS: usize = [$(stringify!($state),)* $(stringify!($telemetry),)*].len();
            /// Names of the state fields, in order.
            pub(crate) const STATE: [&'static str; [$(stringify!($state)),*].len()] = [$(stringify!($state)),*];

            pub(crate) fn state(&self) -> [f64; Self::STATE.len()] {
                [$(self.$state),*]
            }

            pub(crate) fn from_state([$($state),*]: [f64; Self::STATE.len()]) -> Self {
                Self { $($state,)* ..Self::default() }
            }

            /// All fields in order.
            pub fn to_array(self) -> [f64; Self::FIELDS] {
                [$(self.$state,)* $(self.$telemetry,)*]
            }

            /// The reverse of [`TensorScalars::to_array`].
            pub fn from_array([$($state,)* $($telemetry,)*]: [f64; Self::FIELDS]) -> Self {
                Self { $($state,)* $($telemetry,)* }
            }
        }
    };
}

tensor_scalars! {
    state {
        /// Steps this tensor has taken (steps in which it had a gradient).
        step,
        /// The learned scalar: the radius γ of TPGM and FTP, the strength ω of DiGraP.
        radius,
        /// First Adam moment of the learned scalar.
        radius_m,
        /// Second Adam moment of the learned scalar.
        radius_v,
        /// Adam steps of the learned scalar (TPGM: projection updates).
        radius_step,
        /// 1 once TPGM's radius has been initialized from the first displacement, or a pull's importance has been given, else 0.
        initialized,
        /// DiGraP: `<g, D> / |D|^2` of the previous step.
        previous_coefficient,
        /// DiGraP: `|D|` of the previous step.
        previous_norm,
        /// 1 once the master, if there is one, has been filled from the weights, else 0.
        master_filled,
    }
    telemetry {
        /// Gradient of the loss by the learned scalar, before FTP's factor `k`.
        radius_grad_raw,
        /// Gradient of the loss by the learned scalar, as its Adam saw it.
        radius_grad,
        /// The learned scalar after Adam, before it was clipped.
        radius_unclipped,
        /// SPD: `-<g, W - W0>`.
        alignment,
        /// Displacement before it was pulled back: its L2 norm, or the largest MARS row norm.
        norm,
        /// Smallest factor that a row (MARS) or the tensor (L2) was multiplied by; 1 if nothing was pulled back.
        ratio,
        /// Share of rows (MARS), or 1 or 0 for the tensor (L2), that were pulled back.
        fire_rate,
    }
}
