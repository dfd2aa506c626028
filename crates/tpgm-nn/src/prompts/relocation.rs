//! Prompts that move to where they help.

use candle_core::backprop::GradStore;

use super::allocation::{Allocation, Choice};
use super::visual::{Placement, VisualPrompts};
use crate::error::{Error, Result};
use crate::random::SplitMix64;

/// What a prompt is multiplied by when it is moved, as published.
const SHRINK: f64 = 1e-3;

/// A prompt that was moved.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Move {
    /// Its number.
    pub prompt: usize,
    /// The block it was in front of.
    pub from: usize,
    /// The block it is in front of now.
    pub to: usize,
    /// Its score: see [`VisualPrompts::scores`].
    pub score: f64,
}

/// Iterative prompt relocation (PRO-VPT, arXiv 2503.06901). Once per epoch, before training, run the training data through the
/// model without taking a step: [`Relocation::add`] for each batch, then [`Relocation::relocate`].
///
/// If the largest score is above 0, its prompt is idle: it is multiplied by 1e-3 and moved in front of the block that the
/// [`Allocation`] chooses. What the allocation sees is, for every block, the sum of its scores, standardized over the blocks,
/// the share of the other prompts that is there, and 1 if the prompt is there. One epoch later its reward is the loss before
/// minus the loss now minus the score. Nothing is moved in the first epoch.
///
/// The loss here is the mean over the batches, as scores are. The published code adds up losses divided by the batch size
/// instead, of another scale than the score that it takes off.
#[derive(Debug)]
pub struct Relocation {
    allocation: Allocation,
    random: SplitMix64,
    scores: Vec<f64>,
    loss: f64,
    batches: usize,
    epochs: usize,
    waiting: Option<(Choice, f64, f64)>,
}

impl Relocation {
    /// Nothing seen yet. `seed` decides what is drawn.
    pub fn new(allocation: Allocation, seed: u64) -> Self {
        let random = SplitMix64::named(seed, "prompt relocation");
        Self { allocation, random, scores: Vec::new(), loss: 0.0, batches: 0, epochs: 0, waiting: None }
    }

    /// Takes in a batch: its loss, and the gradients of it.
    ///
    /// # Errors
    ///
    /// A loss or a score that is not finite, or as [`VisualPrompts::scores`]; nothing was taken in then.
    pub fn add(&mut self, prompts: &VisualPrompts, loss: f64, grads: &GradStore) -> Result<()> {
        let scores = prompts.scores(grads)?;
        let bad = scores.iter().position(|score| !score.is_finite());
        if let Some(prompt) = bad {
            let problem = format!("the score of prompt {prompt} is {}", scores[prompt]);
            return Err(Error::Prompts { problem });
        }
        if !loss.is_finite() {
            return Err(Error::Prompts { problem: format!("the loss of a batch is {loss}") });
        }
        self.scores.resize(scores.len(), 0.0);
        self.scores.iter_mut().zip(&scores).for_each(|(sum, score)| *sum += score);
        self.loss += loss;
        self.batches += 1;
        Ok(())
    }

    /// Ends the pass: rewards the move before, and moves a prompt if one is idle.
    ///
    /// # Errors
    ///
    /// [`Error::Prompts`] without a batch, or for an allocation of another number of blocks, or the policy fails.
    pub fn relocate(&mut self, prompts: &mut VisualPrompts) -> Result<Option<Move>> {
        let layers = prompts.shape().layers;
        if self.allocation.layers() != layers {
            let problem = format!(
                "the allocation chooses among {} blocks, the model has {layers}",
                self.allocation.layers()
            );
            return Err(Error::Prompts { problem });
        }
        if self.batches == 0 {
            let problem = "no batch was seen; call `Relocation::add` for each of the pass".to_owned();
            return Err(Error::Prompts { problem });
        }
        let batches = std::mem::take(&mut self.batches) as f64;
        let scores: Vec<f64> = std::mem::take(&mut self.scores).iter().map(|sum| sum / batches).collect();
        let loss = std::mem::take(&mut self.loss) / batches;
        self.epochs += 1;
        if let Some((choice, before, score)) = self.waiting.take() {
            self.allocation.learn(choice, before - loss - score)?;
        }
        let Placement::Placed(places) = prompts.placement() else { return Ok(None) };
        let best = (0..scores.len()).reduce(|best, i| if scores[i] > scores[best] { i } else { best });
        let Some(prompt) = best.filter(|prompt| scores[*prompt] > 0.0 && self.epochs > 1) else {
            return Ok(None);
        };
        let (from, score) = (places[prompt], scores[prompt]);
        let choice = self.allocation.choose(&state(layers, places, &scores, prompt), &mut self.random)?;
        let to = choice.layer();
        prompts.relocate(prompt, to, SHRINK)?;
        self.waiting = Some((choice, loss, score));
        Ok(Some(Move { prompt, from, to, score }))
    }
}

/// What the allocation sees: for all blocks the standardized sum of scores, the share of the other prompts, whether it is there.
fn state(layers: usize, places: &[usize], scores: &[f64], prompt: usize) -> Vec<f64> {
    let (mut sums, mut counts, mut here) = (vec![0.0; layers], vec![0.0; layers], vec![0.0; layers]);
    for (i, (layer, score)) in places.iter().zip(scores).enumerate() {
        sums[*layer] += score;
        counts[*layer] += f64::from(u8::from(i != prompt));
    }
    here[places[prompt]] = 1.0;
    let mean = sums.iter().sum::<f64>() / layers as f64;
    let squares: f64 = sums.iter().map(|sum| (sum - mean).powi(2)).sum();
    let deviation = (squares / (layers as f64 - 1.0).max(1.0)).sqrt();
    let others = (places.len() as f64 - 1.0).max(1.0);
    let standard = sums.iter().map(|sum| (sum - mean) / (deviation + 1e-7));
    standard.chain(counts.iter().map(|count| count / others)).chain(here).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_are_what_they_say() {
        // Blocks 0 and 2 have prompts; the one asked about is the last of block 2.
        let state = state(3, &[0, 2, 2], &[0.5, 0.25, 1.25], 2);
        let mean: f64 = 2.0 / 3.0;
        let square = |sum: f64| (sum - mean).powi(2);
        let deviation = ((square(0.5) + square(0.0) + square(1.5)) / 2.0).sqrt();
        let expected = [
            (0.5 - mean) / deviation,
            -mean / deviation,
            (1.5 - mean) / deviation,
            0.5,
            0.0,
            0.5,
            0.0,
            0.0,
            1.0,
        ];
        for (got, expected) in state.iter().zip(expected) {
            assert!((got - expected).abs() < 1e-6, "{state:?}");
        }
    }
}
