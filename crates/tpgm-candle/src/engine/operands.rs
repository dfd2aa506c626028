//! What a step works on: variables, gradients and anchors, bound without a copy.
//!
//! candle gives write access to a variable's memory only inside an in-place operation, which holds the variable's lock.
//! A fused pass needs all of them at once, so the operations are nested: each takes one lock, adds one slice to the
//! list and starts the next, and the innermost one runs the pass. No `unsafe`: the borrow checker sees every lock.
//!
//! Nothing else may use the variables meanwhile. A thread that runs the model while another takes a step may wait for a
//! lock that the step holds, with a lock in hand that the step waits for.
//!
//! On a GPU a pass is queued, and needs addresses in place of slices: see `cuda.rs`.

#[cfg(feature = "cuda")]
mod cuda;
mod locks;

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use candle_core::{Layout, Storage, Tensor, Var};
#[cfg(any(feature = "cuda", test))]
use tpgm_core::Buffer;
use tpgm_core::{Cpu, Settings, Slice, SliceMut, TensorIo, Variance};

use super::error::{Error, Result};
use crate::files::AnchorData;
use crate::memory::{copy_elements, core_dtype, cpu_elements, overwrite_cpu, storage_key};
use crate::params::{self, Anchor, Param};

/// Variables with their anchors, in set order.
pub(crate) struct Operands {
    entries: Vec<Entry>,
    storages: HashSet<usize>,
}

struct Entry {
    name: String,
    var: Var,
    /// What of it this entry stands for, in its memory: all, or some rows.
    view: Tensor,
    /// On the host, for a variable on the host.
    anchor: Option<AnchorData>,
    /// On the variable's GPU.
    #[cfg(feature = "cuda")]
    gpu_anchor: Option<cuda::GpuAnchor>,
    /// Running variances of the model in training and of the pre-trained one.
    variance: Option<[Tensor; 2]>,
}

impl Entry {
    fn new(name: String, var: &Var, rows: Option<Range<usize>>) -> Result<Self> {
        let whole = var.as_detached_tensor();
        let view = match rows {
            Some(rows) => whole.narrow(0, rows.start, rows.len())?,
            None => whole,
        };
        Ok(Self {
            name,
            var: var.clone(),
            view,
            anchor: None,
            #[cfg(feature = "cuda")]
            gpu_anchor: None,
            variance: None,
        })
    }

    /// The elements of the variable that this entry stands for.
    fn elements(&self) -> Range<usize> {
        let start = self.view.layout().start_offset() - self.var.layout().start_offset();
        start..start + self.view.elem_count()
    }

    fn set_anchor(&mut self, anchor: AnchorData) -> Result<()> {
        #[cfg(feature = "cuda")]
        if self.var.device().is_cuda() {
            self.gpu_anchor = Some(cuda::GpuAnchor::new(anchor.slice(), self.var.device())?);
            return Ok(());
        }
        self.anchor = Some(anchor);
        Ok(())
    }

    #[cfg(any(feature = "cuda", test))]
    fn write_anchor(&self) -> Result<()> {
        #[cfg(feature = "cuda")]
        if let Some(anchor) = &self.gpu_anchor {
            return anchor.write(&self.var);
        }
        let Some(anchor) = &self.anchor else { return Ok(()) };
        overwrite_cpu(&self.var, |weight| {
            copy_elements(anchor.slice(), weight);
            Ok(())
        })?;
        Ok(())
    }
}

impl Operands {
    /// Takes the variables of `params`, without anchors. They must not share memory: a pass writes to each of them.
    pub(crate) fn new(params: &[Param]) -> Result<Self> {
        let mut owners: HashMap<usize, &str> = HashMap::with_capacity(params.len());
        for param in params {
            if let Some(first) = owners.insert(storage_key(param.var()), param.name()) {
                return Err(Error::SharedStorage {
                    first: first.to_owned(),
                    second: param.name().to_owned(),
                });
            }
        }
        let storages = owners.into_keys().collect();
        let entry = |param: &Param| Entry::new(param.name().to_owned(), param.var(), None);
        Ok(Self { entries: params.iter().map(entry).collect::<Result<_>>()?, storages })
    }

    /// Blocks of parameters, each of which is all of one or some of its rows. No two have an element in common; those of one call
    /// of [`Operands::with_cpu`] have not even a variable in common.
    pub(crate) fn of_blocks<'a>(
        blocks: impl IntoIterator<Item = (String, &'a Param, Option<Range<usize>>)>,
    ) -> Result<Self> {
        let entry = |(name, param, rows): (String, &Param, _)| Entry::new(name, param.var(), rows);
        let entries = blocks.into_iter().map(entry).collect::<Result<Vec<_>>>()?;
        let storages = entries.iter().map(|entry| storage_key(&entry.view)).collect();
        Ok(Self { entries, storages })
    }

    /// Takes the anchors of tensors that `settings` constrain. Those of variables on a GPU are copied there, in the type
    /// they have; the others are read where they are.
    pub(crate) fn with_anchors(mut self, params: &[Param], settings: &[Settings]) -> Result<Self> {
        for ((entry, param), settings) in self.entries.iter_mut().zip(params).zip(settings) {
            let Anchor::Pretrained(anchor) = param.anchor() else { continue };
            if !settings.constraint.is_anchored() {
                continue;
            }
            let elements = entry.elements();
            entry.set_anchor(match elements.len() == entry.var.elem_count() {
                true => anchor.clone(),
                false => anchor.part(elements),
            })?;
        }
        Ok(self)
    }

    /// Takes the anchors of all of `params`, each of which has one.
    #[cfg(any(feature = "cuda", test))]
    pub(crate) fn with_all_anchors(mut self, params: &[Param]) -> Result<Self> {
        for (entry, param) in self.entries.iter_mut().zip(params) {
            let zeros = || {
                core_dtype(param.name(), param.var().dtype())
                    .map(|dtype| AnchorData::new(Buffer::zeros(dtype, param.var().elem_count())))
            };
            entry.set_anchor(match param.anchor() {
                Anchor::Pretrained(anchor) => anchor.clone(),
                Anchor::Zero | Anchor::None => zeros()?,
            })?;
        }
        Ok(self)
    }

    /// Writes the anchors to their variables, rounded to their types.
    #[cfg(any(feature = "cuda", test))]
    pub(crate) fn write_anchors(&self) -> Result<()> {
        self.entries.iter().try_for_each(Entry::write_anchor)
    }

    /// Gives a tensor its running variances.
    pub(crate) fn set_variance(&mut self, name: &str, current: Tensor, anchor: Tensor) -> Result<()> {
        let entry = self.entries.iter_mut().find(|entry| entry.name == name);
        let entry = entry.ok_or_else(|| params::Error::UnknownParam { name: name.to_owned() })?;
        entry.variance = Some([current, anchor]);
        Ok(())
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Names and variables, in set order.
    pub(crate) fn vars(&self) -> impl Iterator<Item = (&str, &Var)> {
        self.entries.iter().map(|entry| (entry.name.as_str(), &entry.var))
    }

    /// Names, and what of the variables they stand for, in the variables' memory: all but for [blocks](Operands::of_blocks).
    pub(crate) fn views(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.entries.iter().map(|entry| (entry.name.as_str(), &entry.view))
    }

    /// Writes into what an entry stands for: values of its shape and type.
    pub(crate) fn write(&self, entry: usize, values: &Tensor) -> Result<()> {
        let Entry { var, view, .. } = &self.entries[entry];
        write(var, view, values)
    }

    /// Copies of what the entries stand for.
    pub(crate) fn copies(&self) -> Result<Copies> {
        let copy = |Entry { var, view, .. }: &Entry| {
            // Of rows alone: `copy` would take all of the memory that they lie in.
            Ok((var.clone(), view.clone(), view.force_contiguous()?))
        };
        Ok(Copies(self.entries.iter().map(copy).collect::<Result<_>>()?))
    }

    /// Binds everything for one call and runs `work` on it. `grads` has one entry per variable, or none at all.
    pub(crate) fn with_cpu<R, F>(&self, grads: &[Option<Tensor>], work: F) -> Result<R>
    where
        R: Send,
        F: FnOnce(&mut [TensorIo<'_, Cpu>]) -> tpgm_core::Result<R> + Send,
    {
        let (grads, variances) = (self.gradients(grads)?, self.variances()?);
        // The guards keep the memory readable until the pass is done.
        let grads: Vec<_> = grads.iter().map(|grad| grad.as_ref().map(Tensor::storage_and_layout)).collect();
        let variances: Vec<_> = variances
            .iter()
            .map(|pair| pair.as_ref().map(|pair| pair.each_ref().map(Tensor::storage_and_layout)))
            .collect();
        let reads = self.entries.iter().zip(&grads).zip(&variances).map(|((entry, grad), variance)| Reads {
            grad: grad.as_ref().map(|(storage, layout)| slice(storage, layout)),
            anchor: entry.anchor.as_ref().map(AnchorData::slice),
            variance: variance
                .as_ref()
                .map(|pair| pair.each_ref().map(|(storage, layout)| slice(storage, layout))),
        });
        let reads: Vec<_> = reads.collect();
        self.with_weights(move |weights| {
            let mut io: Vec<_> =
                weights.into_iter().zip(reads).map(|(weight, reads)| reads.bind(weight)).collect();
            work(&mut io)
        })
    }

    /// Checks shapes, types and devices of gradients and makes those contiguous that are not. `grads` has one entry per
    /// variable, or none at all.
    pub(crate) fn gradients(&self, grads: &[Option<Tensor>]) -> Result<Vec<Option<Tensor>>> {
        let gradient = |(i, entry): (usize, &Entry)| match grads.get(i) {
            Some(Some(grad)) => self.readable(entry, "gradient", grad).map(Some),
            _ => Ok(None),
        };
        self.entries.iter().enumerate().map(gradient).collect()
    }

    /// Running variances, checked as gradients are.
    fn variances(&self) -> Result<Vec<Option<[Tensor; 2]>>> {
        let variances = self.entries.iter().map(|entry| match &entry.variance {
            Some([current, anchor]) => Ok(Some([
                self.readable(entry, "running variance", current)?,
                self.readable(entry, "running variance of the anchor", anchor)?,
            ])),
            None => Ok(None),
        });
        variances.collect()
    }

    /// Copies gradients from [`Operands::gradients`] that share memory with another one, so that each may be changed
    /// alone.
    pub(crate) fn apart(grads: Vec<Option<Tensor>>) -> Result<Vec<Option<Tensor>>> {
        let mut seen = HashSet::with_capacity(grads.len());
        let mut apart = |grad: Tensor| match seen.insert(storage_key(&grad)) {
            true => Ok(grad),
            false => grad.force_contiguous().map_err(Error::from),
        };
        grads.into_iter().map(|grad| grad.map(&mut apart).transpose()).collect()
    }

    /// Runs `work` on the memory of all variables.
    pub(crate) fn with_weights<R, F>(&self, work: F) -> Result<R>
    where
        R: Send,
        F: FnOnce(Vec<SliceMut<'_>>) -> tpgm_core::Result<R> + Send,
    {
        locks::with_all(&self.entries, work)
    }

    /// The tensor itself if a pass can read it in place, else a copy: it is strided, or it is a variable of the set,
    /// whose lock the pass needs for itself.
    fn readable(&self, entry: &Entry, what: &'static str, tensor: &Tensor) -> Result<Tensor> {
        if tensor.shape() != entry.view.shape() {
            return Err(params::Error::ShapeMismatch {
                tensor: entry.name.clone(),
                what,
                expected: entry.view.dims().to_vec(),
                got: tensor.dims().to_vec(),
            }
            .into());
        }
        let (expected, got) = (entry.var.device(), tensor.device());
        if !expected.same_device(got) {
            let (expected, got) = (expected.location(), got.location());
            return Err(Error::OperandDevice { tensor: entry.name.clone(), what, expected, got });
        }
        core_dtype(&entry.name, tensor.dtype())?;
        if self.storages.contains(&storage_key(tensor)) {
            return Ok(tensor.force_contiguous()?);
        }
        Ok(tensor.contiguous()?)
    }
}

/// Weights as they were.
pub(crate) struct Copies(Vec<(Var, Tensor, Tensor)>);

impl Copies {
    pub(crate) fn put_back(&self) -> Result<()> {
        self.0.iter().try_for_each(|(var, view, values)| write(var, view, values))
    }
}

/// Writes into a variable, or into some of its rows, on the host.
fn write(var: &Var, view: &Tensor, values: &Tensor) -> Result<()> {
    if view.elem_count() == var.elem_count() {
        return Ok(var.set(values)?);
    }
    let (storage, layout) = values.storage_and_layout();
    let values = cpu_elements(&storage, layout).expect("blocks are contiguous and on the host");
    Ok(overwrite_cpu(view, |target| {
        copy_elements(values, target);
        Ok(())
    })?)
}

/// What a pass only reads of one tensor.
struct Reads<'a> {
    grad: Option<Slice<'a>>,
    anchor: Option<Slice<'a>>,
    variance: Option<[Slice<'a>; 2]>,
}

impl<'a> Reads<'a> {
    fn bind(self, weight: SliceMut<'a>) -> TensorIo<'a, Cpu> {
        let variance = self.variance.map(|[current, anchor]| Variance { current, anchor });
        TensorIo { weight, grad: self.grad, anchor: self.anchor, variance }
    }
}

/// Expects what [`Operands::readable`] returns.
fn slice<'a>(storage: &'a Storage, layout: &Layout) -> Slice<'a> {
    cpu_elements(storage, layout).expect("operands are contiguous host tensors of a trainable type")
}
