//! Where the next trial is tried: at random, or by a tree-structured Parzen estimator for each parameter.

use std::collections::BTreeMap;
use std::convert::Infallible;

use rand_core::TryRng;
use tpe::TpeOptimizer;
use tpgm_nn::random::{GAMMA, SplitMix64};

use super::Space;
use super::error::{Error, Result};

/// One estimator per parameter.
#[derive(Debug)]
pub(super) struct Sampler(BTreeMap<String, TpeOptimizer>);

impl Sampler {
    pub(super) fn new(space: &Space) -> Result<Self> {
        let one = |(name, range): (&String, &super::Range)| {
            let (low, high) = range.inner();
            let range = tpe::range(low, high).map_err(|error| failed(name, &error))?;
            Ok((name.clone(), TpeOptimizer::new(tpe::parzen_estimator(), range)))
        };
        Ok(Self(space.ranges().iter().map(one).collect::<Result<_>>()?))
    }

    /// Values for a trial. Random numbers depend on the seed, the trial and the parameter's name only, so a study that is
    /// resumed has nothing to restore but its trials.
    pub(super) fn suggest(
        &mut self,
        space: &Space,
        seed: u64,
        trial: u64,
        informed: bool,
    ) -> Result<BTreeMap<String, f64>> {
        let seed = seed ^ GAMMA.wrapping_mul(trial + 1);
        let one = |(name, range): (&String, &super::Range)| {
            let mut random = Random(SplitMix64::named(seed, name));
            let (low, high) = range.inner();
            let inner = match self.0.get_mut(name) {
                Some(optimizer) if informed => {
                    optimizer.ask(&mut random).map_err(|error| failed(name, &error))?
                }
                _ => low + (high - low) * random.0.uniform(),
            };
            Ok((name.clone(), range.value(inner)))
        };
        space.ranges().iter().map(one).collect()
    }

    /// Takes in how good a trial's values were.
    pub(super) fn learn(&mut self, space: &Space, values: &BTreeMap<String, f64>, score: f64) -> Result<()> {
        for (name, range) in space.ranges() {
            let (Some(optimizer), Some(value)) = (self.0.get_mut(name), values.get(name)) else { continue };
            optimizer.tell(range.point(*value), score).map_err(|error| failed(name, &error))?;
        }
        Ok(())
    }
}

fn failed(name: &str, problem: &impl std::fmt::Display) -> Error {
    Error::Sampler { name: name.to_owned(), problem: problem.to_string() }
}

/// The project's generator in the words of the sampler's crate.
struct Random(SplitMix64);

impl TryRng for Random {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> std::result::Result<u32, Infallible> {
        Ok((self.0.next_u64() >> 32) as u32)
    }

    fn try_next_u64(&mut self) -> std::result::Result<u64, Infallible> {
        Ok(self.0.next_u64())
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> std::result::Result<(), Infallible> {
        for chunk in bytes.chunks_mut(8) {
            chunk.copy_from_slice(&self.0.next_u64().to_le_bytes()[..chunk.len()]);
        }
        Ok(())
    }
}
