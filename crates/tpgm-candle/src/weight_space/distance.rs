//! How far two checkpoints are apart.

use std::path::Path;

use serde::{Deserialize, Serialize};
use wildmatch::WildMatch;

use super::error::{Error, Result};
use super::norms::measure;
use super::plan::FilePass;
use crate::files::Weights;

/// How far one tensor moved between two checkpoints.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TensorDistance {
    /// Its name.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// L2 (Frobenius) norm of the difference.
    pub l2: f64,
    /// The largest L1 norm of a row of the difference (MARS); 0-D and 1-D tensors are one row.
    pub mars: f64,
    /// The mean of these norms over the rows; 0 for a tensor without rows.
    pub mars_mean: f64,
    /// `l2` over the L2 norm of the first checkpoint's value; infinite if that is 0 and the second's is not, 0 if both
    /// are.
    pub relative: f64,
}

/// The distance of every floating-point tensor (f64, f32, f16, bf16) that both checkpoints have, in the order of the
/// first; sums are in f64. Inputs as for [`merge_files`](super::merge_files), memory-mapped and read once: do not change
/// them meanwhile.
///
/// Tensors that only one checkpoint has, for example a new head, have no distance and are left out. Element types may
/// differ.
///
/// # Errors
///
/// [`Error::BadFile`](crate::files::Error::BadFile), [`Error::Io`](crate::files::Error::Io), or [`Error::TensorMismatch`] for a tensor with two shapes.
pub fn distances(from: impl AsRef<Path>, to: impl AsRef<Path>) -> Result<Vec<TensorDistance>> {
    distances_with(from, to, &[], |_| ())
}

/// [`distances`] of checkpoints of which the tensors that match one of the patterns `renewed` (`*`, `?`) may have another
/// shape, as a new head has: they are left out then. Calls `watch` before each tensor.
///
/// # Errors
///
/// As [`distances`].
pub fn distances_with(
    from: impl AsRef<Path>,
    to: impl AsRef<Path>,
    renewed: &[String],
    mut watch: impl FnMut(FilePass<'_>),
) -> Result<Vec<TensorDistance>> {
    let (from, to) = (Weights::open(from.as_ref())?, Weights::open(to.as_ref())?);
    let (mut distances, of) = (Vec::new(), from.names().count());
    for (done, name) in from.names().enumerate() {
        watch(FilePass { tensor: name, done, of });
        let (Some(a), Some(b)) = (from.get(name), to.get(name)) else { continue };
        if a.shape != b.shape {
            if renewed.iter().any(|pattern| WildMatch::new(pattern).matches(name)) {
                continue;
            }
            return Err(Error::TensorMismatch {
                tensor: name.to_owned(),
                model: to.place(),
                got: b.describe().into(),
                other: from.place(),
                expected: a.describe().into(),
            });
        }
        let (Some(a_values), Some(b_values)) = (a.values(), b.values()) else { continue };
        let (sums, rows) = measure(a.shape, a_values.slice(), b_values.slice());
        let (l2, base) = (sums.squares.sqrt(), sums.base.sqrt());
        let mars_mean = rows.iter().sum::<f64>() / rows.len().max(1) as f64;
        distances.push(TensorDistance {
            name: name.to_owned(),
            shape: a.shape.to_vec(),
            l2,
            // Not `f64::max`, which would drop a NaN.
            mars: rows
                .into_iter()
                .fold(0.0, |most, norm| if norm <= most || most.is_nan() { most } else { norm }),
            mars_mean,
            relative: if l2 == 0.0 { 0.0 } else { l2 / base },
        });
    }
    Ok(distances)
}
