//! The plainest possible f64 implementation of every training method: what the fast backends are checked against.
//!
//! Every operation is a small pure function on f64 slices and a shape, written like its formula. [`Optimizer`] and
//! [`Projector`] chain them over a [`ParamSet`](crate::ParamSet) in the published order, keep everything they computed
//! on the way in a [`Trace`], and allocate freely.
//!
//! | what | functions | source |
//! |---|---|---|
//! | displacement and its norms | [`displacement`], [`blocks`], [`norms`] | arXiv 2303.10720 |
//! | rules | [`adamw_update`], [`sgd_update`] | `torch.optim` |
//! | projection on a given radius | [`fixed_radius`], [`fixed_scale`] | arXiv 2002.08253 |
//! | TPGM | [`initial_radius`], [`clip_radius`], [`ratios`], [`project`], [`radius_gradient`], [`radius_adam`] | arXiv 2303.10720 |
//! | FTP | [`ftp_norms`], [`ftp_radius_gradient`], [`ftp_radius_gradient_low`], [`anneal`], [`ftp_clip`] | arXiv 2310.19182 |
//! | SPD | [`spd_alignment`], [`spd_ratio`] | arXiv 2411.01713 |
//! | DiGraP | [`digrap_component`], [`digrap_gradient`], [`digrap_acts`] | arXiv 2502.15895 |
//! | L2-SP | [`l2sp_pull`] | arXiv 1802.01483 |
//! | pulls, by importance | [`pull`], [`fisher`], [`importance`] | arXiv 2401.10220, 2503.04229 |
//! | clipping, averages, interpolation | [`clip_factor`], [`ema`], [`wise`], [`wise_fisher`] | arXiv 2109.01903 |
//!
//! Operands of one call have the same length, as their shape says; the two drivers check that, the functions do not.
//!
//! **Precision.** Everything is f64, with two exceptions for tensors that are not f64, where rounding decides the result:
//! - TPGM's radius gradient is masked by `0 < radius / (norm + 1e-8) < 1`, and in f32 the sum rounds to `norm` from about
//!   0.25 on. So norms, radii and this quotient are rounded as an f32 implementation has them: [`ratio_argument`],
//!   [`round_to`].
//! - A small step leaves only a few digits in `W - W0`. So weights are rounded to f32 where an implementation holds them
//!   as such, after the rule's step and after the projection: [`held`]. Half-precision weights are rounded no further, as
//!   if their f32 masters were given.

mod average;
mod check;
mod constraint;
mod measure;
mod optimizer;
mod project;
mod projector;
mod rule;
mod state;

pub use average::{ema, wise, wise_fisher};
pub use constraint::{
    anneal, digrap_acts, digrap_component, digrap_gradient, fisher, ftp_clip, ftp_norms, ftp_radius_gradient,
    ftp_radius_gradient_low, importance, l2sp_pull, pull, spd_alignment, spd_ratio,
};
pub use measure::{
    blocks, clip_factor, displacement, dot, global_norm, held, l2, largest, norms, round_to, smallest,
};
pub use optimizer::Optimizer;
pub use project::{
    clip_radius, fixed_radius, fixed_scale, initial_radius, project, radius_adam, radius_gradient,
    ratio_argument, ratios,
};
pub use projector::Projector;
pub use rule::{adamw_update, sgd_update};
pub use state::{Moments, Radius, Trace, Variances};
