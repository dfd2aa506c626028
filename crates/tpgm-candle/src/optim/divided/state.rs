//! What each rank saves of divided state, and finds in what all of them saved.

use std::ops::Range;

use tpgm_core::{StateDict, TensorScalars};

use super::blocks::Block;
use super::{Parts, Result};
use crate::engine::{EmaEngine, Operands, RadiusEngine, StepEngine};

/// An engine whose state is a dictionary.
pub(in crate::optim) trait HasState {
    fn state(&self) -> crate::engine::Result<StateDict>;
    fn check_state(&mut self, state: &StateDict) -> crate::engine::Result<()>;
    fn load_state(&mut self, state: &StateDict) -> crate::engine::Result<()>;
}

impl HasState for dyn StepEngine {
    fn state(&self) -> crate::engine::Result<StateDict> {
        StepEngine::state(self)
    }

    fn check_state(&mut self, state: &StateDict) -> crate::engine::Result<()> {
        StepEngine::check_state(self, state)
    }

    fn load_state(&mut self, state: &StateDict) -> crate::engine::Result<()> {
        StepEngine::load_state(self, state)
    }
}

impl HasState for dyn RadiusEngine {
    fn state(&self) -> crate::engine::Result<StateDict> {
        RadiusEngine::state(self)
    }

    fn check_state(&mut self, state: &StateDict) -> crate::engine::Result<()> {
        RadiusEngine::check_state(self, state)
    }

    fn load_state(&mut self, state: &StateDict) -> crate::engine::Result<()> {
        RadiusEngine::load_state(self, state)
    }
}

impl<E: HasState + ?Sized> Parts<E> {
    /// Of this rank's tensors.
    pub(in crate::optim) fn state(&self) -> Result<StateDict> {
        let mut state = StateDict::new();
        for part in &self.parts {
            state.extend(part.engine.state()?);
        }
        Ok(state)
    }

    /// Takes this rank's slots out of the state of all tensors, or of its own.
    pub(in crate::optim) fn load_state(&mut self, state: &StateDict) -> Result<()> {
        let mut slots = vec![StateDict::new(); self.parts.len()];
        for (key, buffer) in state {
            if let Some(part) = self.part_with(key)? {
                slots[part].insert(key.clone(), buffer.clone());
            }
        }
        // All parts look at theirs before one takes it.
        for (part, slots) in self.parts.iter_mut().zip(&slots) {
            part.engine.check_state(slots)?;
        }
        for (part, slots) in self.parts.iter_mut().zip(&slots) {
            part.engine.load_state(slots)?;
        }
        Ok(())
    }
}

impl<E: ?Sized> Parts<E> {
    /// The part of this rank that a slot belongs to; `None` for one of another rank's tensors.
    fn part_with(&self, key: &str) -> Result<Option<usize>> {
        let unexpected = || tpgm_core::Error::UnexpectedSlot { key: key.to_owned() };
        let (name, _) = key.rsplit_once('/').ok_or_else(unexpected)?;
        let position = self.blocks.set.position(name).map_err(|_| unexpected())?;
        Ok(self.parts.iter().position(|part| part.at.contains(&position)))
    }

    /// Whether this rank keeps what saved state calls this: a tensor, rows that it has some of, or anything else.
    pub(in crate::optim) fn takes(&self, name: &str) -> bool {
        let Some((tensor, rows)) = self.blocks.named(name) else { return true };
        let meets = |block: usize| match &self.blocks.list[block].rows {
            Some(own) => own.start < rows.end && rows.start < own.end,
            None => true,
        };
        let rank = self.communicator.rank();
        self.blocks.of(tensor).any(|block| self.owner(block) == rank && meets(block))
    }

    /// This rank's blocks: what saved state calls them, their tensors and rows.
    pub(in crate::optim) fn held(&self) -> impl Iterator<Item = (&str, usize, Range<usize>)> {
        let specs = self.blocks.set.tensors();
        self.parts.iter().flat_map(|part| &part.at).map(|&i| {
            let Block { tensor, rows } = &self.blocks.list[i];
            let all = 0..self.blocks.whole.tensors()[*tensor].rows().0;
            (specs[i].name.as_str(), *tensor, rows.clone().unwrap_or(all))
        })
    }

    /// Numbers of this rank's tensors, with their names, in set order: of one that is cut those of its first block here.
    pub(super) fn named(
        &self,
        scalars: impl Fn(&E) -> Result<Vec<TensorScalars>>,
    ) -> Result<Vec<(String, TensorScalars)>> {
        let (mut all, mut last) = (Vec::new(), None);
        for part in &self.parts {
            for (&i, scalars) in part.at.iter().zip(scalars(&part.engine)?) {
                let tensor = self.blocks.list[i].tensor;
                if last != Some(tensor) {
                    all.push((self.blocks.whole.tensors()[tensor].name.clone(), scalars));
                }
                last = Some(tensor);
            }
        }
        Ok(all)
    }
}

impl Parts<dyn EmaEngine> {
    /// Calls `work` for every part.
    pub(in crate::optim) fn each(
        &mut self,
        mut work: impl FnMut(&mut dyn EmaEngine, &Operands) -> Result<()>,
    ) -> Result<()> {
        self.parts.iter_mut().try_for_each(|part| work(&mut *part.engine, &part.operands))
    }

    /// Writes the averages into the weights on all ranks. After an error some may hold theirs.
    pub(in crate::optim) fn apply(&mut self) -> Result<()> {
        let applied = self.each(|engine, operands| Ok(engine.apply(operands)?));
        let communicator = &*self.communicator;
        crate::distributed::or_refuse(Some(communicator), applied)?;
        let views: Vec<_> = self.operands.views().collect();
        for bucket in self.division.buckets() {
            communicator.share(&views[bucket.clone()], &self.division.owners()[bucket.clone()])?;
        }
        Ok(communicator.barrier()?)
    }

    /// The averages of this rank's tensors, with their names.
    pub(in crate::optim) fn averages(&self) -> Result<Vec<(String, tpgm_core::Buffer)>> {
        let mut all = Vec::new();
        for part in &self.parts {
            let names = part.at.iter().map(|&i| self.blocks.set.tensors()[i].name.clone());
            all.extend(names.zip(part.engine.state()?));
        }
        Ok(all)
    }

    /// Takes averages, one per tensor of this rank, in set order.
    pub(in crate::optim) fn load_averages(&mut self, averages: &[tpgm_core::Buffer]) -> Result<()> {
        // The earlier ones, to put back if a part refuses its own.
        let earlier = self.averages()?;
        let mut start = 0;
        for number in 0..self.parts.len() {
            let part = &mut self.parts[number];
            let end = start + part.at.len();
            if let Err(error) = part.engine.load_state(&averages[start..end]) {
                let earlier: Vec<_> = earlier.into_iter().map(|(_, average)| average).collect();
                let mut start = 0;
                for part in &mut self.parts[..number] {
                    part.engine.load_state(&earlier[start..start + part.at.len()])?;
                    start += part.at.len();
                }
                return Err(error.into());
            }
            start = end;
        }
        Ok(())
    }
}
