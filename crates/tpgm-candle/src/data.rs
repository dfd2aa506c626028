//! The order in which a run sees its training data.

use serde::{Deserialize, Serialize};

use crate::room::into_candle;
use tpgm_nn::random::SplitMix64;

/// What can go wrong with the order of data.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An option is outside its range.
    #[error(transparent)]
    Core(#[from] tpgm_core::Error),
    /// Training data differ from those of the checkpoint, so the order cannot go on where it stopped.
    #[error("the saved data order has {what} {saved}, but this run has {now}")]
    DataOrder {
        /// What differs.
        what: &'static str,
        /// Its saved value.
        saved: u64,
        /// Its value in this run.
        now: u64,
    },
}

/// A result with this room's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

into_candle!();

/// What happens to the samples at the end of an epoch that do not fill a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LastBatch {
    /// They make a shorter batch, perhaps of one sample.
    #[default]
    Keep,
    /// They are left out of this epoch. Others will be in the next: every epoch is shuffled anew.
    Drop,
}

/// Whether an epoch's samples come in random order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Shuffle {
    /// Another order every epoch.
    #[default]
    EachEpoch,
    /// 0, 1, 2, ...
    Off,
}

/// Hands out batches of sample indices, epoch after epoch, in an order that depends on nothing but its options.
///
/// The order of an epoch is a function of the seed and the epoch's number, so a saved `DataOrder` is a few numbers, and
/// goes on in the middle of an epoch as if it had never been saved. The generator is part of this crate and will not
/// change: another version of a library does not change the order of a run.
///
/// An order that was saved is one of the data of its time: its indices mean nothing for others, and may lie beyond them. So
/// make a new order for the data that are there, and give it the saved one with [`load_state`](Self::load_state), which
/// refuses what does not fit.
///
/// ```
/// use tpgm_candle::DataOrder;
/// let mut order = DataOrder::new(10, 4, 42)?;
/// while order.epoch() < 2 {
///     while let Some(batch) = order.next_batch() {
///         assert!(batch.len() <= 4);
///     }
/// }
/// # Ok::<(), tpgm_candle::Error>(())
/// ```
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(try_from = "Saved")]
pub struct DataOrder {
    len: u64,
    batch_size: u64,
    seed: u64,
    last_batch: LastBatch,
    shuffle: Shuffle,
    epoch: u64,
    /// Samples of this epoch that were handed out.
    position: u64,
    /// Samples of this epoch in order; empty until asked for.
    #[serde(skip)]
    samples: Vec<usize>,
}

/// A [`DataOrder`] as it was read, not yet checked.
#[derive(Deserialize)]
struct Saved {
    len: usize,
    batch_size: usize,
    seed: u64,
    last_batch: LastBatch,
    shuffle: Shuffle,
    epoch: u64,
    position: u64,
}

/// Epochs after this one are not counted: a damaged number must not run over.
const MAX_EPOCH: u64 = u32::MAX as u64;

impl TryFrom<Saved> for DataOrder {
    type Error = String;

    fn try_from(saved: Saved) -> Result<Self, String> {
        let order = DataOrder::new(saved.len, saved.batch_size, saved.seed)
            .and_then(|order| order.last_batch(saved.last_batch))
            .map_err(|error| error.to_string())?
            .shuffle(saved.shuffle);
        let (position, usable) = (saved.position, order.usable());
        if position > usable || (position < usable && !position.is_multiple_of(order.batch_size)) {
            return Err(format!("no batch begins at sample {position} of {usable}"));
        }
        if saved.epoch > MAX_EPOCH {
            return Err(format!("epoch {} is beyond every run", saved.epoch));
        }
        Ok(DataOrder { epoch: saved.epoch, position, ..order })
    }
}

impl DataOrder {
    /// Shuffled batches of `batch_size` out of `len` samples, the last batch of an epoch shorter if need be. A
    /// `batch_size` above `len` gives one short batch per epoch.
    ///
    /// # Errors
    ///
    /// [`Error::Core`] with `InvalidOption` if `len` or `batch_size` is 0.
    pub fn new(len: usize, batch_size: usize, seed: u64) -> Result<Self> {
        at_least_one("DataOrder::len (number of training samples)", len)?;
        at_least_one("DataOrder::batch_size", batch_size)?;
        Ok(Self {
            len: len as u64,
            batch_size: batch_size as u64,
            seed,
            last_batch: LastBatch::Keep,
            shuffle: Shuffle::EachEpoch,
            epoch: 0,
            position: 0,
            samples: Vec::new(),
        })
    }

    /// Sets what happens to a short last batch.
    ///
    /// # Errors
    ///
    /// [`Error::Core`] with `InvalidOption` if no batch would be left.
    pub fn last_batch(mut self, last_batch: LastBatch) -> Result<Self> {
        if last_batch == LastBatch::Drop && self.batch_size > self.len {
            return Err(Error::Core(tpgm_core::Error::InvalidOption {
                option: "DataOrder::batch_size",
                value: self.batch_size as f64,
                requirement: "at most the number of samples when short batches are dropped",
            }));
        }
        self.last_batch = last_batch;
        Ok(self)
    }

    /// Sets whether epochs are shuffled.
    #[must_use]
    pub fn shuffle(mut self, shuffle: Shuffle) -> Self {
        self.shuffle = shuffle;
        self.samples.clear();
        self
    }

    /// The current epoch, from 0: the number of epochs that [`next_batch`](Self::next_batch) has ended.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Batches of the current epoch that were handed out.
    pub fn batch(&self) -> u64 {
        self.position.div_ceil(self.batch_size)
    }

    /// Batches in every epoch.
    pub fn batches_per_epoch(&self) -> u64 {
        self.usable().div_ceil(self.batch_size)
    }

    /// The indices of the next batch, or `None` at the end of an epoch; the call after that begins the next one.
    pub fn next_batch(&mut self) -> Option<&[usize]> {
        if self.position >= self.usable() {
            self.epoch += 1;
            self.position = 0;
            self.samples.clear();
            return None;
        }
        if self.samples.is_empty() {
            self.samples = self.epoch_samples();
        }
        let start = self.position;
        self.position = self.usable().min(start.saturating_add(self.batch_size));
        Some(&self.samples[start as usize..self.position as usize])
    }

    /// Goes to where a saved order was.
    ///
    /// # Errors
    ///
    /// [`Error::DataOrder`] if the number of samples, the batch size, the seed or another option is not what it was;
    /// nothing has changed then.
    pub fn load_state(&mut self, saved: &DataOrder) -> Result<()> {
        for (what, saved, now) in [
            ("a number of samples of", saved.len, self.len),
            ("a batch size of", saved.batch_size, self.batch_size),
            ("the seed", saved.seed, self.seed),
            ("the `LastBatch` choice", saved.last_batch as u64, self.last_batch as u64),
            ("the `Shuffle` choice", saved.shuffle as u64, self.shuffle as u64),
        ] {
            if saved != now {
                return Err(Error::DataOrder { what, saved, now });
            }
        }
        self.epoch = saved.epoch;
        self.position = saved.position;
        self.samples.clear();
        Ok(())
    }

    /// Samples that an epoch hands out.
    fn usable(&self) -> u64 {
        match self.last_batch {
            LastBatch::Keep => self.len,
            LastBatch::Drop => self.len / self.batch_size * self.batch_size,
        }
    }

    fn epoch_samples(&self) -> Vec<usize> {
        let mut samples: Vec<_> = (0..self.len as usize).collect();
        if self.shuffle == Shuffle::EachEpoch {
            // The epoch is scrambled on its own first: seed 1, epoch 0 is not seed 0, epoch 1.
            let mut random = SplitMix64::new(self.seed ^ SplitMix64::new(self.epoch).next_u64());
            // Fisher and Yates.
            for i in (1..samples.len()).rev() {
                samples.swap(i, random.below(i as u64 + 1) as usize);
            }
        }
        samples
    }
}

fn at_least_one(option: &'static str, value: usize) -> Result<()> {
    match value {
        0 => Err(Error::Core(tpgm_core::Error::InvalidOption {
            option,
            value: 0.0,
            requirement: "at least 1",
        })),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_permutation_is_equally_likely() {
        let mut counts = std::collections::HashMap::<Vec<usize>, u32>::new();
        for seed in 0..4 {
            let mut order = DataOrder::new(4, 4, seed).unwrap();
            while order.epoch() < 6000 {
                if let Some(batch) = order.next_batch() {
                    *counts.entry(batch.to_vec()).or_default() += 1;
                }
            }
        }
        assert_eq!(counts.len(), 24);
        let expected = 24_000.0 / 24.0;
        let chi2: f64 = counts.values().map(|&n| (f64::from(n) - expected).powi(2) / expected).sum();
        // The 0.1 % point of chi-squared with 23 degrees of freedom.
        assert!(chi2 < 49.73, "chi-squared {chi2}");
    }
}
