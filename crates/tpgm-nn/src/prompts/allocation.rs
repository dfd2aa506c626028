//! Who decides where a prompt goes.

use crate::error::{Error, Result};
use crate::random::SplitMix64;

use super::ppo::{Memory, Ppo};

/// Who decides in front of which block an idle prompt goes.
#[derive(Debug)]
pub enum Allocation {
    /// A policy that learns from rewards by proximal policy optimization, as PRO-VPT does.
    Ppo(Box<Ppo>),
    /// Thompson sampling over the blocks: PRO-VPT's comparison.
    Thompson(Thompson),
}

impl Allocation {
    /// The block, for a state of three numbers per block.
    pub(super) fn choose(&mut self, state: &[f64], random: &mut SplitMix64) -> Result<Choice> {
        match self {
            Self::Ppo(policy) => policy.choose(state, random).map(Choice::Ppo),
            Self::Thompson(arms) => Ok(Choice::Thompson(arms.choose(random))),
        }
    }

    /// Takes in what came of a choice.
    pub(super) fn learn(&mut self, choice: Choice, reward: f64) -> Result<()> {
        match (self, choice) {
            (Self::Ppo(policy), Choice::Ppo(memory)) => policy.reward(memory, reward),
            (Self::Thompson(arms), Choice::Thompson(layer)) => {
                arms.reward(layer, reward);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    pub(super) fn layers(&self) -> usize {
        match self {
            Self::Ppo(policy) => policy.layers(),
            Self::Thompson(arms) => arms.counts.len(),
        }
    }
}

/// A choice that waits for its reward.
#[derive(Debug, Clone)]
pub(super) enum Choice {
    Ppo(Memory),
    Thompson(usize),
}

impl Choice {
    pub(super) fn layer(&self) -> usize {
        match self {
            Self::Ppo(memory) => memory.action,
            Self::Thompson(layer) => *layer,
        }
    }
}

/// Thompson sampling: each block has a Beta distribution of how often a prompt helped there, and the block with the largest
/// draw is taken (Thompson, 1933).
#[derive(Debug, Clone, PartialEq)]
pub struct Thompson {
    /// Rewards above 0, and others, of each block, plus one.
    counts: Vec<[f64; 2]>,
}

impl Thompson {
    /// All blocks alike.
    ///
    /// # Errors
    ///
    /// [`Error::Prompts`] without blocks.
    pub fn new(layers: usize) -> Result<Self> {
        if layers == 0 {
            return Err(Error::Prompts { problem: "there are no blocks to choose from".to_owned() });
        }
        Ok(Self { counts: vec![[1.0; 2]; layers] })
    }

    fn choose(&self, random: &mut SplitMix64) -> usize {
        let draws = self.counts.iter().map(|[helped, did_not]| random.beta(*helped, *did_not));
        draws
            .enumerate()
            .fold((0, f64::NEG_INFINITY), |best, draw| if draw.1 > best.1 { draw } else { best })
            .0
    }

    fn reward(&mut self, layer: usize, reward: f64) {
        self.counts[layer][usize::from(reward <= 0.0)] += 1.0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_block_that_helps_is_found() {
        let (mut arms, mut random) = (Thompson::new(4).unwrap(), SplitMix64::new(2));
        let mut chosen = [0; 4];
        for _ in 0..200 {
            let layer = arms.choose(&mut random);
            let chance = [0.1, 0.3, 0.9, 0.3][layer];
            arms.reward(layer, if random.uniform() < chance { 0.5 } else { -0.5 });
            chosen[layer] += 1;
        }
        assert!(chosen[2] > 130, "{chosen:?}");
        assert!(Thompson::new(0).is_err());
    }
}
