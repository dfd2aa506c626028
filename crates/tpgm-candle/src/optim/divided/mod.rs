//! State that is divided between ranks: each keeps that of its own tensors alone (as ZeRO stage 1, arXiv 1910.02054).
//!
//! A call that changes weights goes in two rounds, so that it happens on all ranks or on none. In the first, bucket after
//! bucket, every rank finds out what its tensors will become, sends that to the others, and takes it back. When all ranks
//! have everything, each makes the call on its own tensors for good and writes what it was sent into the others. So an
//! own tensor is moved twice, which on two ranks is the work of one undivided step, and a copy of weights and state of one
//! bucket's own tensors is all the memory that this takes: others' weights wait in the memory of their gradients, which
//! nobody needs any more.

mod radii;
mod state;
mod steps;

use std::sync::Arc;

use candle_core::{Tensor, Var};
use tpgm_core::{Constraint, ParamSet, Settings};

pub(super) use self::radii::{RadiusSteps, WholeRadii};
use super::error::{Error, Result};
use crate::distributed::{Communicator, Division, agreed, or_refuse};
use crate::engine::Operands;
use crate::params::Param;

/// What does the work: an engine over all tensors, or one for every part of this rank.
pub(super) enum Engine<E: ?Sized> {
    Whole(Box<E>),
    Divided(Box<Parts<E>>),
}

/// The tensors of this rank, in parts.
pub(super) struct Parts<E: ?Sized> {
    communicator: Arc<dyn Communicator>,
    division: Division,
    set: ParamSet,
    parts: Vec<Part<E>>,
    /// Of every tensor of the set, whether TPGM learns its radius.
    learned: Vec<bool>,
    /// Of every tensor of the set, whether it keeps an importance.
    weighed: Vec<bool>,
    /// While a projection update runs: other ranks' weights before it.
    live: Vec<(Var, Tensor)>,
}

/// This rank's tensors of one bucket, with an engine of their own.
pub(super) struct Part<E: ?Sized> {
    bucket: usize,
    /// Their positions in the set.
    at: Vec<usize>,
    operands: Operands,
    engine: Box<E>,
}

/// Gradients for a step: the means over all ranks, where there are several.
pub(super) struct Means {
    /// One per tensor of the set. With divided state, of this rank's tensors alone.
    pub(super) own: Vec<Option<Tensor>>,
    /// Which tensors have one, on any rank.
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

    /// Whether this rank keeps the state of a tensor.
    pub(super) fn holds(&self, tensor: usize) -> bool {
        match self {
            Self::Whole(_) => true,
            Self::Divided(parts) => parts.owner(tensor) == parts.communicator.rank(),
        }
    }
}

impl<E: ?Sized> Parts<E> {
    /// Divides `params`, which make up `set`. `engine` makes the engine of a part.
    pub(super) fn new(
        communicator: Arc<dyn Communicator>,
        params: &[Param],
        set: &ParamSet,
        settings: &[Settings],
        mut engine: impl FnMut(&ParamSet, &Operands) -> Result<Box<E>>,
    ) -> Result<Self> {
        let division = Division::new(set, communicator.size());
        let mut parts = Vec::new();
        for (number, bucket) in division.buckets().iter().enumerate() {
            let at = division.of(communicator.rank(), bucket);
            if at.is_empty() {
                continue;
            }
            let own: Vec<Param> = at.iter().map(|&i| params[i].clone()).collect();
            let settings: Vec<Settings> = at.iter().map(|&i| settings[i]).collect();
            let operands = Operands::new(&own)?.with_anchors(&own, &settings)?;
            let engine = engine(&set.part(&at), &operands)?;
            parts.push(Part { bucket: number, at, operands, engine });
        }
        let of = |holds: fn(&Constraint) -> bool| settings.iter().map(|s| holds(&s.constraint)).collect();
        Ok(Self {
            communicator,
            division,
            set: set.clone(),
            parts,
            learned: of(|constraint| matches!(constraint, Constraint::Tpgm(_))),
            weighed: of(|constraint| matches!(constraint, Constraint::Pull(pull) if pull.weights.is_kept())),
            live: Vec::new(),
        })
    }

    /// Gives a tensor its running variances, if it is one of this rank.
    pub(super) fn set_variance(&mut self, name: &str, current: Tensor, anchor: Tensor) -> Result<()> {
        let position = self.set.position(name)?;
        match self.parts.iter_mut().find(|part| part.at.contains(&position)) {
            Some(part) => Ok(part.operands.set_variance(name, current, anchor)?),
            None => Ok(()),
        }
    }

    fn owner(&self, tensor: usize) -> usize {
        self.division.owners()[tensor]
    }

    /// The part that has a tensor, and the error for one of another rank.
    fn part_of(&self, tensor: &str) -> Result<&Part<E>> {
        let position = self.set.position(tensor)?;
        self.parts
            .iter()
            .find(|part| part.at.contains(&position))
            .ok_or_else(|| Error::OtherRank { tensor: tensor.to_owned(), owner: self.owner(position) })
    }

    /// Tells the other ranks of an error, or waits until all of them say that they have none.
    fn agreed<T>(&self, result: Result<T>) -> Result<T> {
        agreed(&*self.communicator, result)
    }

    /// The means of gradients over all ranks, each on its owner. Sends every gradient of another rank once.
    pub(super) fn reduce(&self, operands: &Operands, grads: Vec<Option<Tensor>>) -> Result<Means> {
        let (communicator, owners) = (&*self.communicator, self.division.owners());
        let own = operands.gradients(&grads).and_then(Operands::apart);
        let grads = or_refuse(Some(communicator), own)?;
        let names: Vec<&str> = operands.vars().map(|(name, _)| name).collect();
        for bucket in self.division.buckets() {
            let there = bucket.clone().filter_map(|i| Some((i, grads[i].as_ref()?)));
            let (named, to): (Vec<_>, Vec<_>) = there.map(|(i, grad)| ((names[i], grad), owners[i])).unzip();
            if !named.is_empty() {
                communicator.reduce_mean(&named, &to)?;
            }
        }
        Ok(self.own(grads))
    }

    /// Of gradients that all ranks have, those of this one.
    pub(super) fn own(&self, grads: Vec<Option<Tensor>>) -> Means {
        let mut means = Means::new(grads);
        means.spare = vec![None; means.own.len()];
        for (i, owner) in self.division.owners().iter().enumerate() {
            if *owner != self.communicator.rank() {
                means.spare[i] = means.own[i].take();
            }
        }
        means
    }

    /// A call on all ranks that writes weights. `preview` makes it on a part and takes back what it did to state; `commit`
    /// makes it for good, and has no reason to fail then. Of tensors that are not `moved` nobody is told.
    ///
    /// An error leaves weights and state on all ranks as they were.
    fn exchange(
        &mut self,
        operands: &Operands,
        mut spare: Vec<Option<Tensor>>,
        moved: &[bool],
        preview: impl Fn(&mut Part<E>) -> Result<()>,
        commit: impl Fn(&mut Part<E>) -> Result<()>,
    ) -> Result<()> {
        let communicator = self.communicator.clone();
        if communicator.size() == 1 {
            return self.parts.iter_mut().try_for_each(commit);
        }
        let vars: Vec<(&str, &Var)> = operands.vars().collect();
        let (owners, mut received) = (self.division.owners(), Vec::new());
        let mut parts = self.parts.iter_mut().peekable();
        for (number, bucket) in self.division.buckets().iter().enumerate() {
            let mut first_round = || {
                // Dropped, on whichever way, it puts the weights of this rank back.
                let before = match parts.next_if(|part| part.bucket == number) {
                    Some(part) => {
                        let before = Before::new(&part.operands)?;
                        preview(part)?;
                        Some(before)
                    }
                    None => None,
                };
                let (mut tensors, mut from) = (Vec::new(), Vec::new());
                for i in bucket.clone().filter(|&i| moved[i]) {
                    let var = vars[i].1;
                    let mut tensor = var.as_tensor().clone();
                    if owners[i] != communicator.rank() {
                        tensor = room_for(var, spare.get_mut(i).and_then(Option::take))?;
                        received.push((var, tensor.clone()));
                    }
                    tensors.push((vars[i].0, tensor));
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
        communicator.barrier()?;
        self.parts.iter_mut().try_for_each(commit)?;
        received.into_iter().try_for_each(|(var, new)| Ok(var.set(&new)?))
    }
}

impl<E: ?Sized> Part<E> {
    /// What belongs to the part, out of a list over the set.
    fn select<T: Clone>(&self, all: &[T]) -> Vec<T> {
        self.at.iter().map(|&i| all[i].clone()).collect()
    }
}

/// Memory for a variable's new value.
fn room_for(var: &Var, spare: Option<Tensor>) -> Result<Tensor> {
    match spare {
        Some(spare) if spare.dtype() == var.dtype() && spare.is_contiguous() => Ok(spare),
        _ => Ok(Tensor::zeros(var.shape(), var.dtype(), var.device())?),
    }
}

/// Weights that return when this is dropped.
struct Before(Vec<(Var, Tensor)>);

impl Before {
    fn new(operands: &Operands) -> Result<Self> {
        let copies = operands.vars().map(|(_, var)| Ok((var.clone(), var.as_tensor().copy()?)));
        Ok(Self(copies.collect::<candle_core::Result<_>>()?))
    }
}

impl Drop for Before {
    fn drop(&mut self) {
        // Only a failing device makes this fail, and whoever uses it next is told.
        let _ = self.0.iter().try_for_each(|(var, weight)| var.set(weight));
    }
}
