//! Steps of divided state.

use candle_core::Tensor;
use tpgm_core::{Constraint, Gradients, Norm, StepOptions, StepReport, StepSums, TensorScalars};

use super::{Error, Parts, Result};
use crate::distributed::or_refuse;
use crate::engine::{Operands, StepEngine};
use crate::optim::accumulate::check_finite;

impl Parts<dyn StepEngine> {
    /// A step on all ranks. `grads` are this rank's; `moved` says of all blocks whether a step changes them.
    pub(in crate::optim) fn step(
        &mut self,
        grads: &[Option<Tensor>],
        moved: &[bool],
        spare: Vec<Option<Tensor>>,
        options: &StepOptions,
    ) -> Result<StepReport> {
        let communicator = self.communicator.clone();
        if let (1, [part]) = (communicator.size(), self.parts.as_mut_slice()) {
            // The only rank has everything in one part: there is nothing to try or to send.
            return Ok(part.engine.step(&part.operands, &part.select(grads), options, &[])?);
        }
        let mut options = *options;
        if options.gradients == Gradients::Check || options.max_grad_norm.is_some() {
            // A step finds out by itself, but part by part: what it said would not be of all tensors of this rank.
            or_refuse(Some(&*communicator), own_finite(&self.operands, grads))?;
        }
        let sums = self.sums(grads, options.max_grad_norm.is_some())?;
        let mut grad_norm = None;
        if let Some(max) = options.max_grad_norm.take() {
            let norm = sums.iter().map(|sums| sums.square).sum::<f64>().sqrt() * options.grad_scale;
            grad_norm = Some(norm);
            options.grad_scale *= (max / (norm + 1e-6)).min(1.0);
            options.gradients = Gradients::Check;
        }
        let blocks = self.blocks.list.iter();
        let known: Vec<Option<StepSums>> =
            blocks.map(|block| block.rows.as_ref().map(|_| sums[block.tensor])).collect();
        let learned = moved.iter().zip(&self.learned);
        let moved: Vec<bool> = learned.map(|(moved, learned)| *moved || *learned).collect();
        // The trial has shown that they are finite.
        let for_good = StepOptions { gradients: Gradients::Trust, ..options };
        let mut of_tensors = Vec::new();
        self.exchange(
            spare,
            &moved,
            |part| {
                let (grads, known) = (part.select(grads), part.select(&known));
                Ok(part.engine.preview_step(&part.operands, &grads, &options, &known)?)
            },
            |this, scalars| {
                of_tensors = this.scalars_of_rows(grads, scalars)?;
                Ok(())
            },
            |part| {
                let (grads, known) = (part.select(grads), part.select(&known));
                part.engine.step(&part.operands, &grads, &for_good, &known)?;
                Ok(())
            },
        )?;
        for part in &mut self.parts {
            if !part.at.iter().any(|&i| of_tensors.get(i).is_some_and(Option::is_some)) {
                continue;
            }
            let mut scalars = part.engine.scalars()?;
            for (own, &i) in scalars.iter_mut().zip(&part.at) {
                *own = of_tensors[i].unwrap_or(*own);
            }
            part.engine.put_scalars(&scalars)?;
        }
        Ok(StepReport { grad_norm })
    }

    /// What a step adds up over gradients, of every tensor: the squares, for `clipping`; and all that it needs to know of tensors
    /// that are cut. With clipping sends 8 bytes per tensor, and 32 per piece of work of one that is cut; without, the latter under FTP
    /// and DiGraP alone.
    fn sums(&mut self, grads: &[Option<Tensor>], clipping: bool) -> Result<Vec<StepSums>> {
        let communicator = self.communicator.clone();
        let blocks = &self.blocks;
        let count = |i: usize| match (blocks.is_cut(i), &blocks.settings[i].constraint) {
            (true, Constraint::Ftp(_) | Constraint::Digrap(_)) => StepSums::FIELDS * blocks.pieces[i],
            (true, _) if clipping => StepSums::FIELDS * blocks.pieces[i],
            _ => usize::from(clipping),
        };
        let count: Vec<usize> = (0..blocks.list.len()).map(count).collect();
        let mut own = || {
            let mut own = vec![Vec::new(); count.len()];
            for part in self.parts.iter_mut().filter(|part| part.at.iter().any(|&i| count[i] > 0)) {
                let sums = part.engine.step_sums(&part.operands, &part.select(grads))?;
                for (&i, pieces) in part.at.iter().zip(sums) {
                    debug_assert!(
                        !blocks.is_cut(i) || pieces.len() == blocks.pieces[i],
                        "one chunk, everywhere"
                    );
                    own[i] = match count[i] {
                        0 => Vec::new(),
                        1 => vec![StepSums::total(pieces).square],
                        _ => pieces.into_iter().flat_map(StepSums::to_array).collect(),
                    };
                }
            }
            Ok::<_, Error>(own)
        };
        let own = or_refuse(Some(&*communicator), own())?;
        let all = self.tell("sums over gradients", &count, &own)?;
        let total = |tensor: usize| {
            let blocks = self.blocks.of(tensor);
            match self.blocks.is_cut(blocks.start) {
                true => {
                    let pieces = all[blocks].iter().flat_map(|numbers| numbers.as_chunks().0);
                    StepSums::total(pieces.map(|piece| StepSums::from_array(*piece)))
                }
                false => {
                    let square = all[blocks.start].first().copied().unwrap_or(0.0);
                    StepSums { square, ..StepSums::default() }
                }
            }
        };
        let totals: Vec<StepSums> = (0..self.blocks.whole.len()).map(total).collect();
        // Finite gradients can still overflow a product with what is remembered of earlier steps. All ranks see the same.
        match totals.iter().position(|sums| !sums.products_are_finite()) {
            None => Ok(totals),
            Some(i) => {
                let tensor = self.blocks.whole.tensors()[i].name.clone();
                let what = "product of gradient and displacement";
                Err(tpgm_core::Error::NonFiniteValue { tensor, what }.into())
            }
        }
    }

    /// The scalars of tensors that are cut, one per block, out of those of their rows after a step: of tensors that took one, and
    /// whose constraint looks at rows. Blocks of others have the same ones by themselves.
    fn scalars_of_rows(
        &self,
        grads: &[Option<Tensor>],
        after: Vec<Option<TensorScalars>>,
    ) -> Result<Vec<Option<TensorScalars>>> {
        let blocks = &self.blocks;
        let by_rows = |i: usize| blocks.is_cut(i) && blocks.settings[i].constraint.norm() == Some(Norm::Mars);
        let count = |i: usize| if by_rows(i) { TensorScalars::FIELDS } else { 0 };
        let count: Vec<usize> = (0..blocks.list.len()).map(count).collect();
        let own = |(i, after): (usize, Option<TensorScalars>)| match (after, &grads[i]) {
            (Some(after), Some(_)) => after.to_array().to_vec(),
            // It did not move.
            _ => vec![f64::NAN; TensorScalars::FIELDS],
        };
        let own: Vec<Vec<f64>> = after.into_iter().enumerate().map(own).collect();
        let all = self.tell("scalars of rows", &count, &own)?;
        let mut merged = vec![None; count.len()];
        for tensor in 0..blocks.whole.len() {
            let of = blocks.of(tensor);
            if by_rows(of.start) {
                let rows = of.clone().map(|i| blocks.list[i].rows.as_ref().map_or(0, |rows| rows.len()));
                let scalars = all[of.clone()].iter().flat_map(|numbers| numbers.as_chunks().0);
                let scalars = scalars.map(|fields| TensorScalars::from_array(*fields));
                merged[of].fill(of_all_rows(rows.zip(scalars)));
            }
        }
        Ok(merged)
    }

    /// Takes importance from gradients, this rank's.
    pub(in crate::optim) fn update_importance(&mut self, grads: &[Option<Tensor>]) -> Result<()> {
        if !self.weighed.contains(&true) {
            return Err(tpgm_core::Error::NoImportances.into());
        }
        let weighed = |(grad, weighed): (&Option<Tensor>, &bool)| grad.clone().filter(|_| *weighed);
        let grads: Vec<Option<Tensor>> = grads.iter().zip(&self.weighed).map(weighed).collect();
        let mut looked_at = || {
            own_finite(&self.operands, &grads)?;
            for part in &mut self.parts {
                let squares = part.engine.squares(&part.operands, &part.select(&grads))?;
                if let Some(i) = squares.iter().position(|square| !square.is_finite()) {
                    let tensor = self.blocks.set.tensors()[part.at[i]].name.clone();
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
        // Of a tensor that is cut a block answers that it keeps none.
        let block = self.blocks.of(self.blocks.whole.position(tensor)?).start;
        let name = &self.blocks.set.tensors()[block].name;
        match self.parts.iter_mut().find(|part| part.at.contains(&block)) {
            Some(part) => Ok(part.engine.set_importance(name, values)?),
            None => Ok(()),
        }
    }

    pub(in crate::optim) fn importance(&self, tensor: &str) -> Result<Vec<f64>> {
        let (block, part) = self.parts_of(tensor)?[0];
        Ok(part.engine.importance(&self.blocks.set.tensors()[block].name)?)
    }

    /// Of the rows that are here.
    pub(in crate::optim) fn norms(&self, tensor: &str) -> Result<Vec<f64>> {
        let mut norms = Vec::new();
        let mut parts = self.parts_of(tensor)?;
        if self.blocks.settings[parts[0].0].constraint.norm() != Some(Norm::Mars) {
            // One of the whole tensor, or the zero in its place.
            parts.truncate(1);
        }
        for (block, part) in parts {
            norms.extend(part.engine.norms(&self.blocks.set.tensors()[block].name)?);
        }
        Ok(norms)
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

/// The scalars of a tensor, out of those of its blocks and their numbers of rows. `None` if they are of no step.
fn of_all_rows(blocks: impl Iterator<Item = (usize, TensorScalars)>) -> Option<TensorScalars> {
    let mut all: Option<TensorScalars> = None;
    let (mut rows, mut pulled) = (0, 0.0);
    for (of_block, scalars) in blocks {
        rows += of_block;
        pulled += (scalars.fire_rate * of_block as f64).round();
        let all = all.get_or_insert(scalars);
        // FTP: a radius is as long as the longest row lets it be.
        all.radius = all.radius.max(scalars.radius);
        all.norm = all.norm.max(scalars.norm);
        all.ratio = all.ratio.min(scalars.ratio);
    }
    let all = all.filter(|all| !all.step.is_nan())?;
    Some(TensorScalars { fire_rate: pulled / rows as f64, ..all })
}
