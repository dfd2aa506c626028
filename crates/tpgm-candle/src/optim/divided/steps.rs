//! Steps of divided state.

use candle_core::{Device, Tensor};
use tpgm_core::{Gradients, StepOptions, StepReport, TensorScalars};

use super::{Error, Parts, Result};
use crate::distributed::or_refuse;
use crate::engine::{Operands, StepEngine};
use crate::optim::accumulate::check_finite;

impl Parts<dyn StepEngine> {
    /// A step on all ranks. `grads` are this rank's; `moved` says of all tensors whether a step changes them.
    pub(in crate::optim) fn step(
        &mut self,
        operands: &Operands,
        grads: &[Option<Tensor>],
        moved: &[bool],
        spare: Vec<Option<Tensor>>,
        options: &StepOptions,
    ) -> Result<StepReport> {
        let communicator = self.communicator.clone();
        let mut options = *options;
        if options.gradients == Gradients::Check || options.max_grad_norm.is_some() {
            // A step finds out by itself, but part by part: what it said would not be of all tensors of this rank.
            or_refuse(Some(&*communicator), own_finite(operands, grads))?;
        }
        let mut grad_norm = None;
        if let Some(max) = options.max_grad_norm.take() {
            let norm = self.squares(operands, grads)?.into_iter().sum::<f64>().sqrt() * options.grad_scale;
            grad_norm = Some(norm);
            options.grad_scale *= (max / (norm + 1e-6)).min(1.0);
            options.gradients = Gradients::Check;
        }
        let learned = moved.iter().zip(&self.learned);
        let moved: Vec<bool> = learned.map(|(moved, learned)| *moved || *learned).collect();
        self.exchange(
            operands,
            spare,
            &moved,
            |part| Ok(part.engine.preview_step(&part.operands, &part.select(grads), &options)?),
            |part| {
                part.engine.step(&part.operands, &part.select(grads), &options)?;
                Ok(())
            },
        )?;
        Ok(StepReport { grad_norm })
    }

    /// The squares of the gradients of all tensors, in set order. Sends 8 bytes per tensor.
    fn squares(&mut self, operands: &Operands, grads: &[Option<Tensor>]) -> Result<Vec<f64>> {
        let communicator = self.communicator.clone();
        let mut own = || {
            let mut squares = vec![0.0; self.set.len()];
            for part in &mut self.parts {
                let of_part = part.engine.squares(&part.operands, &part.select(grads))?;
                part.at.iter().zip(of_part).for_each(|(&i, square)| squares[i] = square);
            }
            Ok::<_, Error>(squares)
        };
        let mut squares = or_refuse(Some(&*communicator), own())?;
        let device = operands.vars().next().map_or(&Device::Cpu, |(_, var)| var.device());
        let owners = self.division.owners();
        let of = |rank: usize| (0..owners.len()).filter(move |&i| owners[i] == rank);
        let mut tensors = Vec::new();
        for rank in (0..communicator.size()).filter(|&rank| of(rank).next().is_some()) {
            let values: Vec<f64> = of(rank).map(|i| squares[i]).collect();
            let tensor = or_refuse(Some(&*communicator), Tensor::new(values, device))?;
            tensors.push((rank, tensor));
        }
        let named: Vec<_> =
            tensors.iter().map(|(_, tensor)| ("squared norms of gradients", tensor)).collect();
        let from: Vec<usize> = tensors.iter().map(|(rank, _)| *rank).collect();
        communicator.share(&named, &from)?;
        for (rank, tensor) in tensors {
            of(rank).zip(tensor.to_vec1::<f64>()?).for_each(|(i, square)| squares[i] = square);
        }
        Ok(squares)
    }

    /// Takes importance from gradients, this rank's.
    pub(in crate::optim) fn update_importance(
        &mut self,
        operands: &Operands,
        grads: &[Option<Tensor>],
    ) -> Result<()> {
        if !self.weighed.contains(&true) {
            return Err(tpgm_core::Error::NoImportances.into());
        }
        let weighed = |(grad, weighed): (&Option<Tensor>, &bool)| grad.clone().filter(|_| *weighed);
        let grads: Vec<Option<Tensor>> = grads.iter().zip(&self.weighed).map(weighed).collect();
        let mut looked_at = || {
            own_finite(operands, &grads)?;
            for part in &mut self.parts {
                let squares = part.engine.squares(&part.operands, &part.select(&grads))?;
                if let Some(i) = squares.iter().position(|square| !square.is_finite()) {
                    let tensor = self.set.tensors()[part.at[i]].name.clone();
                    let what = "mean square of the gradient";
                    return Err(tpgm_core::Error::NonFiniteValue { tensor, what }.into());
                }
            }
            Ok(())
        };
        let looked_at = looked_at();
        self.agreed(looked_at)?;
        for part in &mut self.parts {
            if part.at.iter().any(|&i| self.weighed[i]) {
                part.engine.update_importance(&part.operands, &part.select(&grads))?;
            }
        }
        Ok(())
    }

    /// Sets an importance, on the rank that keeps it.
    pub(in crate::optim) fn set_importance(&mut self, tensor: &str, values: &[f64]) -> Result<()> {
        let position = self.set.position(tensor)?;
        match self.parts.iter_mut().find(|part| part.at.contains(&position)) {
            Some(part) => Ok(part.engine.set_importance(tensor, values)?),
            None => Ok(()),
        }
    }

    pub(in crate::optim) fn importance(&self, tensor: &str) -> Result<Vec<f64>> {
        Ok(self.part_of(tensor)?.engine.importance(tensor)?)
    }

    pub(in crate::optim) fn norms(&self, tensor: &str) -> Result<Vec<f64>> {
        Ok(self.part_of(tensor)?.engine.norms(tensor)?)
    }

    /// Of this rank's tensors.
    pub(in crate::optim) fn scalars(&self) -> Result<Vec<(String, TensorScalars)>> {
        self.named(|engine| Ok(engine.scalars()?))
    }
}

/// As [`check_finite`], over this rank's gradients.
pub(super) fn own_finite(operands: &Operands, grads: &[Option<Tensor>]) -> Result<()> {
    check_finite(operands, &operands.gradients(grads)?)
}
