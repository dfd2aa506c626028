//! Several ranks train as one.
#![allow(clippy::unwrap_used)]

mod checkpoints;
mod divided;
mod divided_failures;
mod divided_state;
mod failures;
mod launch;
mod means;
mod methods;
mod net;
mod rows;
mod timeouts;
mod training;

use std::thread;

use tpgm_candle::distributed::InProcess;

use self::net::{Net, ROWS, numbers, part, tensor};

/// Runs every rank in a thread of its own and returns what they return.
fn ranks<R: Send>(size: usize, work: impl Fn(InProcess) -> R + Sync) -> Vec<R> {
    thread::scope(|scope| {
        let group = InProcess::group(size).into_iter();
        let threads: Vec<_> = group.map(|communicator| scope.spawn(|| work(communicator))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}
