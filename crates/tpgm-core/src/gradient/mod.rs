//! Changes of gradients between the backward pass and the step, which see all tensors at once.
//!
//! | transform | what it does with a gradient | source |
//! |---|---|---|
//! | [`Concordant`] | keeps what the last M agree on | FSTTA (ICML 2024) |
//! | [`KernelProjection`] | removes what would change the outputs of kept samples | arXiv 2404.11013, our reading |
//! | [`OrthogonalPart`] | adds of a second gradient what does not work against it | GradMF (ICASSP 2024), PCGrad (arXiv 2001.06782) |
//!
//! [`slow_gradient`] makes a gradient of where several states of the weights have gone (FSTTA's slow half).
//!
//! They run on the current rayon pool and give the same bits for any number of threads. Gradients are read and written in their
//! own type; sums and products are in f64.

mod concordant;
mod eigen;
mod kernel_projection;
mod linear;
mod orthogonal_part;
mod slow;

use crate::blocks::{check_count, check_len};
use crate::element::{Slice, SliceMut};
use crate::error::{Error, Result};
use crate::params::ParamSet;

pub use self::concordant::{Concordant, concordant};
pub use self::kernel_projection::KernelProjection;
pub use self::orthogonal_part::{Conflict, OrthogonalPart};
pub use self::slow::{SlowDirection, slow_gradient};

/// The gradients of a set, in set order; tensors without one are left alone.
pub type Grads<'g, 's> = &'g mut [Option<SliceMut<'s>>];

/// Whether a step follows a transform.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Follow {
    /// The gradients are what the step takes.
    Step,
    /// The transform only looked: no step is taken now, and the weights stay.
    Wait,
}

/// Something between the backward pass and the step.
pub trait GradientTransform {
    /// Changes the gradients of a set in place, or only takes note of them.
    ///
    /// # Errors
    ///
    /// Wrong numbers or lengths, gradients that are not finite, or what the transform needs is missing. Gradients and transform are
    /// then as before.
    fn apply(&mut self, grads: Grads<'_, '_>) -> Result<Follow>;
}

/// Checks the lengths of gradients, and that they are finite.
fn check(set: &ParamSet, grads: &[Option<Slice<'_>>]) -> Result<()> {
    check_count("gradients", set.len(), grads.len())?;
    let mut bad = Vec::new();
    for (spec, grad) in set.tensors().iter().zip(grads) {
        let Some(grad) = grad else { continue };
        check_len(&spec.name, "gradient", spec.numel(), grad.len())?;
        if !linear::is_finite(*grad) {
            bad.push(spec.name.clone());
        }
    }
    let count = bad.len();
    match bad.into_iter().next() {
        Some(tensor) => Err(Error::NonFiniteGradient { tensor, count }),
        None => Ok(()),
    }
}

/// As something to read.
fn reads<'a>(grads: &'a [Option<SliceMut<'_>>]) -> Vec<Option<Slice<'a>>> {
    grads.iter().map(|grad| grad.as_ref().map(SliceMut::as_slice)).collect()
}
