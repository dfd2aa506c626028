//! Batches made ahead of their use.

use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::Scope;

use anyhow::{Context, Result, bail};
use tpgm_candle::DataOrder;

/// A batch, or nothing if none of its samples could be read.
type Made<B> = Result<Option<B>>;

/// Makes batches: from the samples' indices and the epoch.
type Make<'scope, B> = Box<dyn Fn(&[usize], u64) -> Made<B> + Send + 'scope>;

/// An endless row of batches in a [`DataOrder`], made on another thread while the earlier ones are used.
pub struct Loader<'scope, B> {
    /// Where the consumer is: what a checkpoint saves, whatever was made ahead.
    order: DataOrder,
    source: Source<'scope, B>,
}

enum Source<'scope, B> {
    /// Made when asked for.
    Here(Make<'scope, B>),
    /// Made ahead; the thread ends when this end of the channel is gone.
    Ahead(Receiver<Made<B>>),
}

impl<'scope, B: Send + 'scope> Loader<'scope, B> {
    /// Begins at the position of `order`. `make` gets the samples' indices and the epoch, and runs at most `ahead` batches
    /// ahead; with 0 it runs when a batch is asked for, on the caller's thread.
    pub fn new(
        scope: &'scope Scope<'scope, '_>,
        order: DataOrder,
        ahead: usize,
        make: impl Fn(&[usize], u64) -> Made<B> + Send + 'scope,
    ) -> Self {
        if ahead == 0 {
            return Self { order, source: Source::Here(Box::new(make)) };
        }
        let (sender, receiver) = sync_channel(ahead - 1);
        let mut own = order.clone();
        scope.spawn(move || {
            loop {
                let made = next(&mut own, &make);
                let failed = made.is_err();
                if sender.send(made).is_err() || failed {
                    return;
                }
            }
        });
        Self { order, source: Source::Ahead(receiver) }
    }

    /// The next batch; batches of which no sample could be read are passed over.
    ///
    /// # Errors
    ///
    /// A batch could not be made, or not a single sample of a whole epoch could be read.
    pub fn next_batch(&mut self) -> Result<B> {
        for _ in 0..=self.order.batches_per_epoch() {
            let made = match &self.source {
                Source::Here(make) => next(&mut self.order, make)?,
                Source::Ahead(receiver) => {
                    next(&mut self.order, &|_: &[usize], _: u64| ());
                    receiver.recv().context("the thread that reads data has ended")??
                }
            };
            if let Some(batch) = made {
                return Ok(batch);
            }
        }
        bail!("none of the samples can be read")
    }

    /// Where the row of batches goes on after those that were taken.
    pub fn order(&self) -> &DataOrder {
        &self.order
    }
}

/// Takes the order to its next batch and makes it.
fn next<T>(order: &mut DataOrder, make: &impl Fn(&[usize], u64) -> T) -> T {
    loop {
        let epoch = order.epoch();
        if let Some(samples) = order.next_batch() {
            return make(samples, epoch);
        }
    }
}

/// Positions of the next batch, of the next epoch if this one is over.
pub fn next_positions(order: &mut DataOrder) -> Vec<usize> {
    next(order, &|positions: &[usize], _: u64| positions.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order() -> DataOrder {
        DataOrder::new(7, 3, 5).unwrap()
    }

    /// The first `count` batches, with their epochs.
    fn taken(ahead: usize, order: DataOrder, count: usize) -> (Vec<(Vec<usize>, u64)>, DataOrder) {
        std::thread::scope(|scope| {
            let make = |samples: &[usize], epoch| Ok(Some((samples.to_vec(), epoch)));
            let mut loader = Loader::new(scope, order, ahead, make);
            let batches = (0..count).map(|_| loader.next_batch().unwrap()).collect();
            (batches, loader.order().clone())
        })
    }

    #[test]
    fn batches_are_the_same_made_ahead_or_not_and_go_on_where_they_were() {
        let (here, _) = taken(0, order(), 8);
        assert_eq!(here.iter().map(|(_, epoch)| *epoch).collect::<Vec<_>>(), [0, 0, 0, 1, 1, 1, 2, 2]);
        for ahead in [1, 2, 5] {
            let (first, position) = taken(ahead, order(), 5);
            let saved = serde_json::to_string(&position).unwrap();
            let (rest, _) = taken(ahead, serde_json::from_str(&saved).unwrap(), 3);
            assert_eq!([first, rest].concat(), here, "{ahead} ahead");
        }
    }

    #[test]
    fn unreadable_batches_are_passed_over_but_not_forever() {
        for ahead in [0, 2] {
            std::thread::scope(|scope| {
                let some = |samples: &[usize], _| Ok(samples.contains(&4).then(|| samples.to_vec()));
                let mut loader = Loader::new(scope, order(), ahead, some);
                assert!(loader.next_batch().unwrap().contains(&4));
                let mut loader = Loader::<()>::new(scope, order(), ahead, |_, _| Ok(None));
                assert!(loader.next_batch().unwrap_err().to_string().contains("none of the samples"));
                let mut loader = Loader::<()>::new(scope, order(), ahead, |_, _| bail!("no disk"));
                assert_eq!(loader.next_batch().unwrap_err().to_string(), "no disk");
            });
        }
    }
}
