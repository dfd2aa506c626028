//! How far two checkpoints are apart.

use std::path::Path;

use serde::{Deserialize, Serialize};
use wildmatch::WildMatch;

use super::error::{Error, Result};
use super::inputs::mismatch;
use super::integers::check_integers;
use super::norms::measure;
use super::plan::FilePass;
use super::quantized::refuse_quantized;
use super::rename::{Rename, Renames};
use super::report::{LeftOut, Why};
use super::select::Patterns;
use crate::{OpenOptions, Weights};

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

/// What [`distances`] found. Its text counts what was measured, and counts and names what was not.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Distances {
    /// Every floating-point tensor that both checkpoints have, in the order of the first.
    pub tensors: Vec<TensorDistance>,
    /// What was not measured: tensors of one checkpoint only, integers, and what the options say.
    pub left_out: Vec<LeftOut>,
}

impl Distances {
    /// L2 norm of the difference of all measured tensors together.
    pub fn l2(&self) -> f64 {
        // Not `sum`, which is -0 for nothing.
        self.tensors.iter().fold(0.0, |sum, tensor| sum + tensor.l2.powi(2)).sqrt()
    }
}

/// Exceptions of a measurement. The default has none.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct DistanceOptions {
    /// Patterns (`*`, `?`) of tensors that are not measured, for example a head of another shape. In [`distances_with`] they may
    /// match nothing.
    pub leave_out: Vec<String>,
    /// Other names for tensors, in both checkpoints; patterns are about the new ones. In [`distances_with`] a rule may match nothing.
    pub rename: Vec<Rename>,
    /// The second checkpoint has the new names already, as what [`merge_files`](super::merge_files) wrote has.
    pub rename_first_only: bool,
}

impl DistanceOptions {
    /// Checks that every pattern and rule matches a tensor of one of the checkpoints that are to be measured, of which one alone
    /// may lack it. Reads headers only.
    ///
    /// # Errors
    ///
    /// [`tpgm_core::Error::PatternMatchesNothing`], or [`Error::Files`] for a file that cannot be read.
    pub fn validate<P: AsRef<Path>>(&self, checkpoints: &[P]) -> Result<()> {
        let mut renames = Renames::new(&self.rename);
        let open = |path: &P| renames.open(path.as_ref(), &OpenOptions::default());
        let opened = checkpoints.iter().map(open).collect::<crate::Result<Vec<_>>>()?;
        if let Some(first) = opened.first() {
            renames.check_used(first)?;
        }
        Patterns::new(&self.leave_out).matches(opened.iter().flat_map(Weights::names)).map(|_| ())
    }
}

/// The distance of every floating-point tensor (f64, f32, f16, bf16, also mixed) that both checkpoints have; sums are in
/// f64. Inputs as for [`merge_files`](super::merge_files): do not change them meanwhile.
///
/// Tensors that only one checkpoint has, for example a new head, have no distance, and neither have integers: the result
/// lists them. Values that are not finite give distances that are not.
///
/// # Errors
///
/// [`Error::Files`] for a file that cannot be read, [`Error::TensorMismatch`] for a tensor with two
/// shapes, [`Error::Quantized`], [`Error::IntegerMatrix`] for integers of two or more dimensions that differ,
/// [`Error::NotMergeable`] for another element type, or [`Error::NothingInCommon`].
pub fn distances(from: impl AsRef<Path>, to: impl AsRef<Path>) -> Result<Distances> {
    distances_with(from, to, &DistanceOptions::default(), |_| ())
}

/// [`distances`] with options. Calls `watch` before each tensor.
///
/// # Errors
///
/// As [`distances`].
pub fn distances_with(
    from: impl AsRef<Path>,
    to: impl AsRef<Path>,
    options: &DistanceOptions,
    mut watch: impl FnMut(FilePass<'_>),
) -> Result<Distances> {
    let open = |path: &Path, rules: &[Rename]| Renames::new(rules).open(path, &OpenOptions::default());
    let second: &[Rename] = if options.rename_first_only { &[] } else { &options.rename };
    let (from, to) = (open(from.as_ref(), &options.rename)?, open(to.as_ref(), second)?);
    let patterns: Vec<WildMatch> = options.leave_out.iter().map(|pattern| WildMatch::new(pattern)).collect();
    let asked = |name: &str| patterns.iter().any(|pattern| pattern.matches(name));
    refuse_quantized(&from, asked)?;
    refuse_quantized(&to, asked)?;
    let mut found = Distances::default();
    let of = from.names().count();
    for (done, name) in from.names().enumerate() {
        watch(FilePass { tensor: name, done, of });
        match measure_tensor(name, &from, &to, asked(name))? {
            Ok(distance) => found.tensors.push(distance),
            Err(why) => found.left_out.push(LeftOut { name: name.to_owned(), model: from.place(), why }),
        }
    }
    for name in to.names().filter(|name| from.get(name).is_none()) {
        let why = if asked(name) { Why::Asked } else { Why::Alone };
        found.left_out.push(LeftOut { name: name.to_owned(), model: to.place(), why });
    }
    if found.tensors.is_empty() {
        let first = |model: &Weights| model.names().next().unwrap_or_default().to_owned();
        return Err(Error::NothingInCommon {
            model: from.place(),
            first: first(&from),
            other: to.place(),
            second: first(&to),
        });
    }
    Ok(found)
}

/// The distance of a tensor, or why it has none.
fn measure_tensor(
    name: &str,
    from: &Weights,
    to: &Weights,
    asked: bool,
) -> Result<std::result::Result<TensorDistance, Why>> {
    let a = from.get(name).expect("a listed tensor");
    if asked {
        return Ok(Err(Why::Asked));
    }
    let Some(b) = to.get(name) else { return Ok(Err(Why::Alone)) };
    if a.is_discrete() && b.is_discrete() {
        check_integers(name, from, std::iter::once(to))?;
        return Ok(Err(Why::Integer));
    }
    if a.shape != b.shape || a.is_discrete() || b.is_discrete() {
        return Err(mismatch(name, (to, &b), (from, &a)));
    }
    let values = |model: &Weights, dtype: safetensors::Dtype| {
        model.values(name)?.ok_or_else(|| Error::NotMergeable {
            tensor: name.to_owned(),
            dtype: dtype.to_string(),
            model: model.place(),
        })
    };
    let (a_values, b_values) = (values(from, a.dtype)?, values(to, b.dtype)?);
    let (sums, rows) = measure(a.shape, a_values.slice(), b_values.slice());
    let (l2, base) = (sums.squares.sqrt(), sums.base.sqrt());
    let mars_mean = rows.iter().sum::<f64>() / rows.len().max(1) as f64;
    Ok(Ok(TensorDistance {
        name: name.to_owned(),
        shape: a.shape.to_vec(),
        l2,
        // Not `f64::max`, which would drop a NaN.
        mars: rows
            .into_iter()
            .fold(0.0, |most, norm| if norm <= most || most.is_nan() { most } else { norm }),
        mars_mean,
        relative: if l2 == 0.0 { 0.0 } else { l2 / base },
    }))
}
