//! Merging checkpoint files.

use std::path::Path;

use tpgm_core::weight_space::{ModelStock, StockEntry, UniformSoup, WiseEntry, WiseFt};
use tpgm_core::{Buffer, FixedRadius, Slice, TensorSpec};

use super::error::{Error, Result};
use super::norms::row_norms;
use super::plan::{FilePass, MergeMethod, MergePlan, MergeReport, MergedTensor};
use super::select::Patterns;
use crate::files;
use crate::files::Writer;
use crate::files::{Entry, Values, Weights};

/// Merges checkpoints into the safetensors file `out`.
///
/// Inputs are a safetensors file, a `*.index.json` of shards, or a folder with `model.safetensors` in either form. They
/// are memory-mapped and worked on tensor by tensor, so models larger than memory can be merged: what is held is the merge
/// of one tensor (of a soup also its sum). Do not change the inputs meanwhile.
///
/// The first model says what `out` holds: the names, their order, the element types, and the text metadata. Integer and
/// boolean tensors (batch counters, position ids) are its own, bit for bit, and so is what [`MergePlan::copy`] names. All
/// other tensors must be f64, f32, f16 or bf16 and have the same shape and type in every input.
///
/// `out` is written beside its place, as `.writing-*`, and moved there at the end: after an error it is what it was. It may
/// be one of the inputs.
///
/// ```no_run
/// use tpgm_candle::weight_space::{MergePlan, merge_files};
/// let plan = MergePlan::wise(0.5).copy("classifier.*");
/// merge_files(&plan, Some("pretrained.safetensors".as_ref()), &["tuned.safetensors"], "wise.safetensors")?;
/// # Ok::<(), tpgm_candle::Error>(())
/// ```
///
/// # Errors
///
/// [`Error::MergeInputs`] for a wrong number of models or an anchor too many or too few, [`Error::BadFile`](crate::files::Error::BadFile),
/// [`Error::MissingTensor`], [`Error::TensorMismatch`], [`Error::NotMergeable`], an option outside its range, or
/// [`Error::Io`](crate::files::Error::Io).
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
    let merge = Merge::open(plan, anchor, models)?;
    let first = &merge.models[0];
    let copied = Patterns::new(&plan.copy).matches(first.names())?;

    let mut layout = Vec::new();
    for name in first.names() {
        let entry = first.get(name).expect("a listed tensor");
        if !copied.contains(name) && !entry.is_discrete() {
            merge.check(name, &entry)?;
        }
        layout.push((name, entry.dtype, entry.shape));
    }
    let mut writer = Writer::create(out.as_ref(), &first.metadata(), &layout)?;
    let mut report = MergeReport::default();
    for (done, name) in first.names().enumerate() {
        watch(FilePass { tensor: name, done, of: layout.len() });
        let entry = first.get(name).expect("a listed tensor");
        if copied.contains(name) || entry.is_discrete() {
            writer.bytes(entry.bytes)?;
            report.copied.push(name.to_owned());
        } else {
            let (values, coefficients) = merge.tensor(name, &entry)?;
            writer.values(values.as_slice())?;
            report.merged.push(MergedTensor { name: name.to_owned(), coefficients });
        }
    }
    writer.finish()?;
    Ok(report)
}

fn check_inputs(method: &MergeMethod, anchor: bool, models: usize) -> Result<()> {
    let (method, fits, takes) = match method {
        MergeMethod::Wise { .. } => ("interpolation", anchor && models == 1, "the anchor and one model"),
        MergeMethod::UniformSoup => ("a uniform soup", !anchor && models >= 1, "models and no anchor"),
        MergeMethod::ModelStock(_) => {
            ("Model Stock", anchor && models >= 2, "the anchor and two or more models")
        }
        MergeMethod::Project(_) => ("projection", anchor && models == 1, "the anchor and one model"),
    };
    if fits { Ok(()) } else { Err(Error::MergeInputs { method, takes }) }
}

/// The opened inputs of a merge.
struct Merge<'a> {
    method: &'a MergeMethod,
    anchor: Option<Weights>,
    models: Vec<Weights>,
    fisher: Option<[Weights; 2]>,
}

impl<'a> Merge<'a> {
    fn open<P: AsRef<Path>>(plan: &'a MergePlan, anchor: Option<&Path>, models: &[P]) -> Result<Self> {
        let fisher = match &plan.method {
            MergeMethod::Wise { options, fisher } => {
                options.validate()?;
                fisher.as_ref()
            }
            MergeMethod::Project(radius) => {
                tpgm_core::Constraint::from(*radius).validate()?;
                None
            }
            _ => None,
        };
        let fisher =
            fisher.map(|[f0, f1]| Ok::<_, Error>([Weights::open(f0)?, Weights::open(f1)?])).transpose()?;
        let models = models.iter().map(|path| Weights::open(path.as_ref())).collect::<files::Result<_>>()?;
        Ok(Self { method: &plan.method, anchor: anchor.map(Weights::open).transpose()?, models, fisher })
    }

    /// Makes sure, before anything is written, that a tensor can be merged.
    fn check(&self, name: &str, first: &Entry<'_>) -> Result<()> {
        let from = &self.models[0];
        if first.float().is_none() {
            return Err(Error::NotMergeable {
                tensor: name.to_owned(),
                dtype: first.dtype.to_string(),
                model: from.place(),
            });
        }
        for model in self.anchor.iter().chain(&self.models[1..]) {
            let entry = model.get(name).ok_or_else(|| missing(name, model, from))?;
            same(name, (model, entry.describe()), (from, first.describe()))?;
        }
        let Some([fisher0, fisher1]) = &self.fisher else { return Ok(()) };
        match (fisher0.get(name), fisher1.get(name)) {
            (None, None) => Ok(()),
            (Some(_), None) => Err(missing(name, fisher1, fisher0)),
            (None, Some(_)) => Err(missing(name, fisher0, fisher1)),
            (Some(entry0), Some(entry1)) => {
                [(fisher0, entry0), (fisher1, entry1)].into_iter().try_for_each(|(fisher, entry)| {
                    values(name, fisher, &entry)?;
                    // Fisher information may have an element type of its own.
                    same(name, (fisher, format!("{:?}", entry.shape)), (from, format!("{:?}", first.shape)))
                })
            }
        }
    }

    /// The merge of a tensor that [`Merge::check`] has seen, in the element type of the first model.
    fn tensor(&self, name: &str, first: &Entry<'_>) -> Result<(Buffer, Vec<f64>)> {
        let models = self.models.iter().map(|model| read(name, model)).collect::<Result<Vec<_>>>()?;
        let anchor = self.anchor.as_ref().map(|model| read(name, model)).transpose()?;
        let models: Vec<Slice<'_>> = models.iter().map(Values::slice).collect();
        let mut out = Buffer::zeros(models[0].dtype(), models[0].len());
        let anchor = || anchor.as_ref().map(Values::slice).expect("inputs were counted");
        let mut coefficients = Vec::new();
        match self.method {
            MergeMethod::Wise { options, .. } => {
                let fisher = |which: usize| {
                    let fisher = self.fisher.as_ref().map(|both| &both[which])?;
                    fisher.get(name)?.values()
                };
                let (fisher0, fisher1) = (fisher(0), fisher(1));
                let mut entry = WiseEntry::new(name, anchor(), models[0], out.as_mut());
                if let Some((fisher0, fisher1)) = fisher0.as_ref().zip(fisher1.as_ref()) {
                    entry = entry.fisher(fisher0.slice(), fisher1.slice());
                }
                options.merge(&mut [entry])?;
            }
            MergeMethod::UniformSoup => mean(name, first.shape, &models, &mut out)?,
            MergeMethod::ModelStock(stock) => {
                coefficients = stocked(stock, name, first.shape, anchor(), &models, &mut out)?;
            }
            MergeMethod::Project(radius) => {
                coefficients = project(radius, name, first.shape, anchor(), models[0], &mut out)?;
            }
        }
        Ok((out, coefficients))
    }
}

fn mean(name: &str, shape: &[usize], models: &[Slice<'_>], out: &mut Buffer) -> Result<()> {
    let spec = TensorSpec { name: name.to_owned(), shape: shape.to_vec(), dtype: out.dtype() };
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
/// stays bit for bit.
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

/// A tensor that is known to be there.
fn read<'a>(name: &str, model: &'a Weights) -> Result<Values<'a>> {
    values(name, model, &model.get(name).ok_or_else(|| missing(name, model, model))?)
}

fn values<'a>(name: &str, model: &Weights, entry: &Entry<'a>) -> Result<Values<'a>> {
    entry.values().ok_or_else(|| Error::NotMergeable {
        tensor: name.to_owned(),
        dtype: entry.dtype.to_string(),
        model: model.place(),
    })
}

fn missing(name: &str, model: &Weights, other: &Weights) -> Error {
    Error::MissingTensor { tensor: name.to_owned(), model: model.place(), other: other.place() }
}

fn same(name: &str, (model, got): (&Weights, String), (other, expected): (&Weights, String)) -> Result<()> {
    if got == expected {
        return Ok(());
    }
    let (model, other) = (model.place(), other.place());
    let (got, expected) = (got.into(), expected.into());
    Err(Error::TensorMismatch { tensor: name.to_owned(), model, got, other, expected })
}
