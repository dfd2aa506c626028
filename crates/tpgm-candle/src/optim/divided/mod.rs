//! State that is divided between ranks: each keeps that of its own tensors, and blocks of rows, alone (as ZeRO stage 1, arXiv
//! 1910.02054).
//!
//! A call that changes weights goes in two rounds, so that it happens on all ranks or on none. In the first, bucket after
//! bucket, every rank finds out what its tensors will become, sends that to the others, and takes it back. When all ranks
//! have everything, each makes the call on its own tensors for good and writes what it was sent into the others. So an
//! own tensor is moved twice, which on two ranks is the work of one undivided step, and a copy of weights and state of one
//! bucket's own tensors is all the memory that this takes: others' weights wait in the memory of their gradients, which
//! nobody needs any more.

mod blocks;
mod radii;
mod saved;
mod state;
mod steps;

use std::sync::Arc;

use candle_core::{Device, Tensor, Var};
use tpgm_core::{Constraint, ParamSet, Settings, TensorScalars};

use self::blocks::Blocks;
pub(super) use self::radii::{RadiusSteps, WholeRadii};
pub(super) use self::saved::fit;
use super::error::{Error, Result};
use crate::distributed::{Communicator, Division, agreed, or_refuse};
use crate::engine::{Copies, Operands};
use crate::params::Param;

/// What does the work: an engine over all tensors, or one for every part of this rank.
pub(super) enum Engine<E: ?Sized> {
    Whole(Box<E>),
    Divided(Box<Parts<E>>),
}

/// The blocks of this rank, in parts. A block is a tensor, or some rows of one.
pub(super) struct Parts<E: ?Sized> {
    communicator: Arc<dyn Communicator>,
    blocks: Blocks,
    /// All blocks, without anchors.
    operands: Operands,
    division: Division,
    parts: Vec<Part<E>>,
    /// Of every block, whether TPGM learns its radius.
    learned: Vec<bool>,
    /// Of every block, whether it keeps an importance.
    weighed: Vec<bool>,
    /// While a projection update runs: other ranks' weights before it.
    live: Vec<(Var, Tensor)>,
}

/// This rank's blocks of one bucket, with an engine of their own.
pub(super) struct Part<E: ?Sized> {
    bucket: usize,
    /// Their positions among all.
    at: Vec<usize>,
    operands: Operands,
    engine: Box<E>,
}

/// Gradients for a step: the means over all ranks, where there are several.
pub(super) struct Means {
    /// One per tensor of the set. With divided state one per block, of this rank's alone.
    pub(super) own: Vec<Option<Tensor>>,
    /// Which of these have one, on any rank.
    pub(super) present: Vec<bool>,
    /// Memory of gradients that nobody needs any more.
    pub(super) spare: Vec<Option<Tensor>>,
}

impl Means {
    pub(super) fn new(own: Vec<Option<Tensor>>) -> Self {
        Self { present: own.iter().map(Option::is_some).collect(), own, spare: Vec::new() }
    }
}

impl<E: ?Sized> Engine<E> {
    /// Hands an error to all ranks before one of them goes on, where they do not have it by themselves.
    pub(super) fn agreed<T>(&self, result: Result<T>) -> Result<T> {
        match self {
            Self::Whole(_) => result,
            Self::Divided(parts) => parts.agreed(result),
        }
    }

    /// What the state of this rank, and gradients, are of: the variables, or the blocks of divided state.
    pub(super) fn units<'a>(&'a self, vars: &'a Operands) -> &'a Operands {
        match self {
            Self::Whole(_) => vars,
            Self::Divided(parts) => &parts.operands,
        }
    }

    /// Of every tensor, out of a list with one entry per unit. Blocks of a tensor have the same one.
    pub(super) fn by_tensor(&self, units: Vec<bool>) -> Vec<bool> {
        match self {
            Self::Whole(_) => units,
            Self::Divided(parts) => {
                (0..parts.blocks.whole.len()).map(|tensor| units[parts.blocks.of(tensor).start]).collect()
            }
        }
    }

    /// Whether this rank keeps the state of a unit.
    pub(super) fn holds(&self, unit: usize) -> bool {
        match self {
            Self::Whole(_) => true,
            Self::Divided(parts) => parts.owner(unit) == parts.communicator.rank(),
        }
    }

    /// Whether this rank keeps state of a tensor, or of some of its rows.
    pub(super) fn holds_some_of(&self, tensor: usize) -> bool {
        match self {
            Self::Whole(_) => true,
            Self::Divided(parts) => parts.blocks.of(tensor).any(|block| self.holds(block)),
        }
    }
}

impl<E: ?Sized> Parts<E> {
    /// Divides `params`, which make up `set`. `engine` makes the engine of a part. Tensors are cut by rows if there is a `chunk`:
    /// the elements of a piece of work of that engine.
    pub(super) fn new(
        communicator: Arc<dyn Communicator>,
        params: &[Param],
        set: &ParamSet,
        settings: &[Settings],
        chunk: Option<usize>,
        mut engine: impl FnMut(&ParamSet, &Operands) -> Result<Box<E>>,
    ) -> Result<Self> {
        let blocks = Blocks::new(set, settings, chunk.filter(|_| communicator.size() > 1));
        let division = Division::new(&blocks.set, &blocks.tensors(), communicator.size());
        let mut parts = Vec::new();
        for (number, bucket) in division.buckets().iter().enumerate() {
            let at = division.of(communicator.rank(), bucket);
            if at.is_empty() {
                continue;
            }
            let own: Vec<Param> = at.iter().map(|&i| params[blocks.list[i].tensor].clone()).collect();
            let settings: Vec<Settings> = at.iter().map(|&i| blocks.settings[i]).collect();
            let operands = blocks.operands(params, at.iter().copied())?.with_anchors(&own, &settings)?;
            let engine = engine(&blocks.set.part(&at), &operands)?;
            parts.push(Part { bucket: number, at, operands, engine });
        }
        let of =
            |holds: fn(&Constraint) -> bool| blocks.settings.iter().map(|s| holds(&s.constraint)).collect();
        Ok(Self {
            communicator,
            operands: blocks.operands(params, 0..blocks.list.len())?,
            division,
            parts,
            learned: of(|constraint| matches!(constraint, Constraint::Tpgm(_))),
            weighed: of(|constraint| matches!(constraint, Constraint::Pull(pull) if pull.weights.is_kept())),
            live: Vec::new(),
            blocks,
        })
    }

    /// Gives a tensor its running variances, if it is one of this rank.
    pub(super) fn set_variance(&mut self, name: &str, current: Tensor, anchor: Tensor) -> Result<()> {
        self.blocks.whole.position(name)?;
        // Whoever has a use for them is not cut.
        let Ok(position) = self.blocks.set.position(name) else { return Ok(()) };
        match self.parts.iter_mut().find(|part| part.at.contains(&position)) {
            Some(part) => Ok(part.operands.set_variance(name, current, anchor)?),
            None => Ok(()),
        }
    }

    fn owner(&self, block: usize) -> usize {
        self.division.owners()[block]
    }

    /// This rank's blocks of a tensor, each with its part. The error is for a tensor of which it has none.
    fn parts_of(&self, tensor: &str) -> Result<Vec<(usize, &Part<E>)>> {
        let blocks = self.blocks.of(self.blocks.whole.position(tensor)?);
        let part = |block: usize| Some((block, self.parts.iter().find(|part| part.at.contains(&block))?));
        let found: Vec<_> = blocks.clone().filter_map(part).collect();
        match found.is_empty() {
            true => Err(Error::OtherRank { tensor: tensor.to_owned(), owner: self.owner(blocks.start) }),
            false => Ok(found),
        }
    }

    /// Tells the other ranks of an error, or waits until all of them say that they have none.
    fn agreed<T>(&self, result: Result<T>) -> Result<T> {
        agreed(&*self.communicator, result)
    }

    /// The means of the variables' gradients over all ranks, each on its owner. Sends every gradient of another rank once.
    pub(super) fn reduce(&self, vars: &Operands, grads: Vec<Option<Tensor>>) -> Result<Means> {
        let (communicator, owners) = (&*self.communicator, self.division.owners());
        let own = vars.gradients(&grads).and_then(Operands::apart).map_err(Error::from);
        let grads = or_refuse(Some(communicator), own.and_then(|grads| self.cut(grads)))?;
        let names: Vec<&str> = self.operands.vars().map(|(name, _)| name).collect();
        for bucket in self.division.buckets() {
            let there = bucket.clone().filter_map(|i| Some((i, grads[i].as_ref()?)));
            let (named, to): (Vec<_>, Vec<_>) = there.map(|(i, grad)| ((names[i], grad), owners[i])).unzip();
            if !named.is_empty() {
                communicator.reduce_mean(&named, &to)?;
            }
        }
        Ok(self.own(grads))
    }

    /// Of gradients of the variables that all ranks have, those of this one.
    pub(super) fn means(&self, grads: Vec<Option<Tensor>>) -> Result<Means> {
        Ok(self.own(self.cut(grads)?))
    }

    /// Gradients of blocks, in the memory of those of the variables.
    fn cut(&self, grads: Vec<Option<Tensor>>) -> Result<Vec<Option<Tensor>>> {
        let of = |block: &blocks::Block| match (&grads[block.tensor], &block.rows) {
            (Some(grad), Some(rows)) => Ok(Some(grad.narrow(0, rows.start, rows.len())?)),
            (grad, _) => Ok(grad.clone()),
        };
        self.blocks.list.iter().map(of).collect()
    }

    fn own(&self, grads: Vec<Option<Tensor>>) -> Means {
        let mut means = Means::new(grads);
        means.spare = vec![None; means.own.len()];
        for (i, owner) in self.division.owners().iter().enumerate() {
            if *owner != self.communicator.rank() {
                means.spare[i] = means.own[i].take();
            }
        }
        means
    }

    /// A call on all ranks that writes weights. `preview` makes it on a part, takes back what it did to state and says what scalars
    /// were; `commit` makes it for good, and has no reason to fail then. `told` gets all of those scalars, by block, before any rank
    /// commits. Of blocks that are not `moved` nobody is told.
    ///
    /// An error leaves weights and state on all ranks as they were.
    fn exchange(
        &mut self,
        mut spare: Vec<Option<Tensor>>,
        moved: &[bool],
        preview: impl Fn(&mut Part<E>) -> Result<Vec<TensorScalars>>,
        told: impl FnOnce(&Self, Vec<Option<TensorScalars>>) -> Result<()>,
        commit: impl Fn(&mut Part<E>) -> Result<()>,
    ) -> Result<()> {
        let communicator = self.communicator.clone();
        if communicator.size() == 1 {
            return self.parts.iter_mut().try_for_each(commit);
        }
        let views: Vec<(&str, &Tensor)> = self.operands.views().collect();
        let (owners, mut received) = (self.division.owners(), Vec::new());
        let mut scalars = vec![None; views.len()];
        let mut parts = self.parts.iter_mut().peekable();
        for (number, bucket) in self.division.buckets().iter().enumerate() {
            let mut first_round = || {
                // Dropped, on whichever way, it puts the weights of this rank back.
                let before = match parts.next_if(|part| part.bucket == number) {
                    Some(part) => {
                        let before = Before(part.operands.copies()?);
                        let after = preview(part)?;
                        part.at.iter().zip(after).for_each(|(&i, after)| scalars[i] = Some(after));
                        Some(before)
                    }
                    None => None,
                };
                let (mut tensors, mut from) = (Vec::new(), Vec::new());
                for i in bucket.clone().filter(|&i| moved[i]) {
                    let (name, view) = views[i];
                    let mut tensor = view.clone();
                    if owners[i] != communicator.rank() {
                        tensor = room_for(view, spare.get_mut(i).and_then(Option::take))?;
                        received.push((i, tensor.clone()));
                    }
                    tensors.push((name, tensor));
                    from.push(owners[i]);
                }
                Ok::<_, Error>((before, tensors, from))
            };
            let (_before, tensors, from) = or_refuse(Some(&*communicator), first_round())?;
            if !tensors.is_empty() {
                let named: Vec<_> = tensors.iter().map(|(name, tensor)| (*name, tensor)).collect();
                communicator.share(&named, &from)?;
            }
        }
        told(self, scalars)?;
        communicator.barrier()?;
        self.parts.iter_mut().try_for_each(commit)?;
        received.into_iter().try_for_each(|(i, new)| Ok(self.operands.write(i, &new)?))
    }

    /// Numbers of blocks, `count` of each, from the ranks that have them to all. Of other ranks' blocks `own` has none.
    fn tell(&self, what: &str, count: &[usize], own: &[Vec<f64>]) -> Result<Vec<Vec<f64>>> {
        let communicator = &*self.communicator;
        let device = self.operands.vars().next().map_or(&Device::Cpu, |(_, var)| var.device());
        let of = |rank: usize| (0..count.len()).filter(move |&i| self.owner(i) == rank && count[i] > 0);
        let mut tensors = Vec::new();
        for rank in (0..communicator.size()).filter(|&rank| of(rank).next().is_some()) {
            let values: Vec<f64> = match rank == communicator.rank() {
                true => of(rank).flat_map(|i| own[i].iter().copied()).collect(),
                false => vec![0.0; of(rank).map(|i| count[i]).sum()],
            };
            let tensor = or_refuse(Some(communicator), Tensor::new(values, device))?;
            tensors.push((rank, tensor));
        }
        let named: Vec<_> = tensors.iter().map(|(_, tensor)| (what, tensor)).collect();
        let from: Vec<usize> = tensors.iter().map(|(rank, _)| *rank).collect();
        if !named.is_empty() {
            communicator.share(&named, &from)?;
        }
        let mut all = vec![Vec::new(); count.len()];
        for (rank, tensor) in tensors {
            let mut values = tensor.to_vec1::<f64>()?.into_iter();
            of(rank).for_each(|i| all[i] = values.by_ref().take(count[i]).collect());
        }
        Ok(all)
    }
}

impl<E: ?Sized> Part<E> {
    /// What belongs to the part, out of a list over the set.
    fn select<T: Clone>(&self, all: &[T]) -> Vec<T> {
        self.at.iter().map(|&i| all[i].clone()).collect()
    }
}

/// Memory for new weights.
fn room_for(view: &Tensor, spare: Option<Tensor>) -> Result<Tensor> {
    match spare {
        Some(spare) if spare.dtype() == view.dtype() && spare.is_contiguous() => Ok(spare),
        _ => Ok(Tensor::zeros(view.shape(), view.dtype(), view.device())?),
    }
}

/// Weights that return when this is dropped.
struct Before(Copies);

impl Drop for Before {
    fn drop(&mut self) {
        // Only a failing device makes this fail, and whoever uses it next is told.
        let _ = self.0.put_back();
    }
}
