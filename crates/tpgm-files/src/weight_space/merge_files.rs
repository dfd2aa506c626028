//! Merging checkpoint files.

use std::path::Path;

use tpgm_core::weight_space::{ModelStock, StockEntry, UniformSoup, WiseEntry, WiseFt};
use tpgm_core::{Buffer, DType, FixedRadius, Slice, TensorSpec};

use super::error::{Error, Result};
use super::finite::non_finite;
use super::inputs::{Fate, Inputs, missing};
use super::norms::row_norms;
use super::plan::{FilePass, MergeMethod, MergePlan, MergedTensor};
use super::report::MergeReport;
use crate::{AnchorData, Weights, Writer, file_dtype};

/// Merges checkpoints into the safetensors file `out`.
///
/// Inputs are safetensors files, PyTorch files, a `*.index.json` of shards, or a folder with safetensors or `.bin` files. They are
/// worked on tensor by tensor, and safetensors files are memory-mapped, so models larger than memory can be merged: what
/// is held is the merge of one tensor (of a soup also its sum). Do not change the inputs meanwhile.
///
/// The first model says what `out` holds: the names, their order, and the text metadata (`format` = `pt` if it has none). All floating-point tensors (f64,
/// f32, f16, bf16, also mixed) must be in every input with the same shape and finite values, and come out in the anchor's
/// element type, or that of [`MergePlan::dtype`]. What only some inputs have is an error, in any order of the inputs,
/// unless [`MergePlan::copy`] or [`MergePlan::drop`] names it; [`MergePlan::rename`] brings different names together.
///
/// Integers and booleans are the first model's, bit for bit: counters and positions (0-D, 1-D, or a row such as
/// `position_ids` of shape `[1, 512]`) whatever the other inputs have, tensors of more dimensions if all inputs have the
/// same bits, or if [`MergePlan::copy`] names them. Quantized checkpoints are refused. The report names all that was
/// copied or left out.
///
/// `out` is written beside its place, as `.writing-*`, and moved there at the end: after an error it is what it was. It may
/// be one of the inputs.
///
/// ```no_run
/// use tpgm_files::weight_space::{MergePlan, merge_files};
/// let plan = MergePlan::wise(0.5).copy("classifier.*");
/// let report = merge_files(&plan, Some("pretrained.bin".as_ref()), &["tuned.safetensors"], "wise.safetensors")?;
/// println!("{report}");
/// # Ok::<(), tpgm_files::weight_space::Error>(())
/// ```
///
/// # Errors
///
/// [`Error::MergeInputs`] for a wrong number of models or an anchor too many or too few,
/// [`Error::Files`] for a file that cannot be read or written, [`Error::MissingTensor`],
/// [`Error::TensorMismatch`], [`Error::NothingLeft`], [`Error::NotMergeable`], [`Error::IntegerMatrix`], [`Error::Quantized`],
/// [`Error::NonFinite`], [`Error::Overflow`], or an option outside its range.
pub fn merge_files<P: AsRef<Path>>(
    plan: &MergePlan,
    anchor: Option<&Path>,
    models: &[P],
    out: impl AsRef<Path>,
) -> Result<MergeReport> {
    merge_files_with(plan, anchor, models, out, |_| ())
}

/// [`merge_files`], which calls `watch` before each tensor: to show how far it is.
///
/// # Errors
///
/// As [`merge_files`].
pub fn merge_files_with<P: AsRef<Path>>(
    plan: &MergePlan,
    anchor: Option<&Path>,
    models: &[P],
    out: impl AsRef<Path>,
    mut watch: impl FnMut(FilePass<'_>),
) -> Result<MergeReport> {
    check_inputs(&plan.method, anchor.is_some(), models.len())?;
    let inputs = Inputs::open(plan, anchor, models)?;
    let first = inputs.first();
    let (fates, left_out) = inputs.sort(plan)?;
    let layout: Vec<_> = fates
        .iter()
        .map(|(name, fate)| {
            let entry = first.get(name).expect("a listed tensor");
            let dtype = if let Fate::Merged(dtype) = fate { file_dtype(*dtype) } else { entry.dtype };
            (*name, dtype, entry.shape)
        })
        .collect();
    let mut writer = Writer::create(out.as_ref(), &first.metadata_to_write(), &layout)?;
    let mut report = MergeReport { left_out, ..MergeReport::default() };
    for (done, ((name, fate), (.., shape))) in fates.iter().zip(&layout).enumerate() {
        watch(FilePass { tensor: name, done, of: layout.len() });
        if let Fate::Merged(dtype) = fate {
            let (values, coefficients) = merge(&plan.method, &inputs, name, shape, *dtype)?;
            writer.values(values.as_slice())?;
            report.merged.push(MergedTensor { name: (*name).to_owned(), coefficients });
        } else {
            writer.bytes(&first.bytes(name)?.ok_or_else(|| missing(name, first, first))?)?;
            report.copied.push((*name).to_owned());
        }
    }
    writer.finish()?;
    Ok(report)
}

impl MergePlan {
    /// Checks what is plain without a look at values: the number of inputs, the ranges of options, and that every pattern and
    /// rule matches a tensor. [`merge_files`] begins with it; a caller does who has other long work to do before.
    ///
    /// # Errors
    ///
    /// [`Error::MergeInputs`], [`Error::Files`], [`Error::NothingLeft`], or [`Error::Core`] for an option outside its range and a
    /// pattern that matches nothing.
    pub fn validate<P: AsRef<Path>>(&self, anchor: Option<&Path>, models: &[P]) -> Result<()> {
        check_inputs(&self.method, anchor.is_some(), models.len())?;
        Inputs::open(self, anchor, models)?.chosen(self).map(|_| ())
    }
}

fn check_inputs(method: &MergeMethod, anchor: bool, models: usize) -> Result<()> {
    let (name, fits, takes) = match method {
        MergeMethod::Wise { .. } => ("interpolation", anchor && models == 1, "the anchor and one model"),
        MergeMethod::UniformSoup => ("a uniform soup", !anchor && models >= 1, "models and no anchor"),
        MergeMethod::ModelStock(_) => {
            ("Model Stock", anchor && models >= 2, "the anchor and two or more models")
        }
        MergeMethod::Project(_) => ("projection", anchor && models == 1, "the anchor and one model"),
    };
    if !fits {
        return Err(Error::MergeInputs { method: name, takes });
    }
    match method {
        MergeMethod::Wise { options, .. } => Ok(options.validate()?),
        MergeMethod::Project(radius) => Ok(tpgm_core::Constraint::from(*radius).validate()?),
        MergeMethod::UniformSoup | MergeMethod::ModelStock(_) => Ok(()),
    }
}

/// The merge of a tensor that all inputs have.
fn merge(
    method: &MergeMethod,
    inputs: &Inputs,
    name: &str,
    shape: &[usize],
    dtype: DType,
) -> Result<(Buffer, Vec<f64>)> {
    let models = inputs.models.iter().map(|model| read(name, model)).collect::<Result<Vec<_>>>()?;
    let anchor = inputs.anchor.as_ref().map(|model| read(name, model)).transpose()?;
    let models: Vec<Slice<'_>> = models.iter().map(AnchorData::slice).collect();
    let anchor = || anchor.as_ref().map(AnchorData::slice).expect("inputs were counted");
    let mut out = Buffer::zeros(dtype, models[0].len());
    let mut coefficients = Vec::new();
    match method {
        MergeMethod::Wise { options, .. } => {
            let fisher = |fisher: &Weights| match fisher.get(name) {
                Some(_) => read(name, fisher).map(Some),
                None => Ok(None),
            };
            let fisher = inputs.fisher.as_ref().map(|[f0, f1]| Ok::<_, Error>((fisher(f0)?, fisher(f1)?)));
            let mut entry = WiseEntry::new(name, anchor(), models[0], out.as_mut());
            let fisher = fisher.transpose()?;
            if let Some((Some(fisher0), Some(fisher1))) = &fisher {
                entry = entry.fisher(fisher0.slice(), fisher1.slice());
            }
            options.merge(&mut [entry])?;
        }
        MergeMethod::UniformSoup => mean(name, shape, &models, &mut out)?,
        MergeMethod::ModelStock(stock) => {
            coefficients = stocked(stock, name, shape, anchor(), &models, &mut out)?;
        }
        MergeMethod::Project(radius) => {
            coefficients = project(radius, name, shape, anchor(), models[0], &mut out)?;
        }
    }
    match non_finite(out.as_slice()) {
        0 => Ok((out, coefficients)),
        count => Err(Error::Overflow { tensor: name.to_owned(), count, dtype }),
    }
}

fn mean(name: &str, shape: &[usize], models: &[Slice<'_>], out: &mut Buffer) -> Result<()> {
    // Sums are kept in the compute type of this: that of the widest model.
    let widest = models.iter().map(Slice::dtype).max_by_key(|dtype| dtype.compute().size());
    let dtype = widest.unwrap_or(out.dtype());
    let spec = TensorSpec { name: name.to_owned(), shape: shape.to_vec(), dtype };
    let mut soup = UniformSoup::new(&[spec]);
    models.iter().try_for_each(|model| soup.add(&[*model]))?;
    Ok(soup.finish(&mut [out.as_mut()])?)
}

fn stocked(
    stock: &ModelStock,
    name: &str,
    shape: &[usize],
    anchor: Slice<'_>,
    models: &[Slice<'_>],
    out: &mut Buffer,
) -> Result<Vec<f64>> {
    let mut entries = [StockEntry::new(name, shape, anchor, models.iter().copied(), out.as_mut())];
    Ok(stock.merge(&mut entries)?.swap_remove(0))
}

/// Keeps the share `min(1, radius / norm)` of the displacement of every row, or of the tensor. What is within the radius
/// stays bit for bit, but for its element type.
fn project(
    limit: &FixedRadius,
    name: &str,
    shape: &[usize],
    anchor: Slice<'_>,
    model: Slice<'_>,
    out: &mut Buffer,
) -> Result<Vec<f64>> {
    let norms = row_norms(limit.norm, shape, anchor, model);
    if norms.iter().any(|norm| !norm.is_finite()) {
        return Err(tpgm_core::Error::NonFiniteValue { tensor: name.to_owned(), what: "displacement" }.into());
    }
    let ratios: Vec<f64> =
        norms.iter().map(|norm| if *norm > limit.radius { limit.radius / norm } else { 1.0 }).collect();
    let len = anchor.len() / ratios.len().max(1);
    for (row, ratio) in ratios.iter().enumerate() {
        let range = row * len..(row + 1) * len;
        let out = out.as_mut().sub_mut(range.clone());
        let entry = WiseEntry::new(name, anchor.sub(range.clone()), model.sub(range), out);
        WiseFt { alpha: *ratio, ..WiseFt::default() }.merge(&mut [entry])?;
    }
    Ok(ratios)
}

/// The finite values of a tensor that is known to be there.
fn read(name: &str, model: &Weights) -> Result<AnchorData> {
    let values = model.values(name)?.ok_or_else(|| missing(name, model, model))?;
    match non_finite(values.slice()) {
        0 => Ok(values),
        count => Err(Error::NonFinite { tensor: name.to_owned(), model: model.place(), count }),
    }
}
