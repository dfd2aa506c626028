//! The nested operations that hold the locks of all variables at once.

use std::cell::Cell;
use std::thread;

use candle_core::{CpuStorage, InplaceOp1, Layout};
use tpgm_core::SliceMut;

use super::Entry;
use crate::engine::Result;
use crate::memory::cpu_slice_mut;

/// Locks taken on one stack; models with more tensors go on in a thread with a stack of its own. Measured per level:
/// 3.1 KiB without optimization and 0.8 KiB with it, so that either needs less than half of the smallest stacks in use
/// (2 MiB).
const LEVELS: usize = if cfg!(debug_assertions) { 256 } else { 1024 };
/// Stack of such a thread in bytes: [`LEVELS`] locks and the pass itself.
const STACK: usize = 2 << 20;

/// Runs `work` on the memory of all entries.
pub(super) fn with_all<R, F>(entries: &[Entry], work: F) -> Result<R>
where
    R: Send,
    F: FnOnce(Vec<SliceMut<'_>>) -> tpgm_core::Result<R> + Send,
{
    let mut out = None;
    let weights = Vec::with_capacity(entries.len());
    descend(entries, 0, Box::new(Held { weights, work, out: &mut out }))?;
    Ok(out.expect("the innermost level always writes its result")?)
}

/// What the nested operations hand to each other. Boxed, because every level has it on its stack.
struct Held<'a, F, R> {
    weights: Vec<SliceMut<'a>>,
    work: F,
    out: &'a mut Option<tpgm_core::Result<R>>,
}

/// Takes the locks of `rest`, then runs the work.
fn descend<R, F>(rest: &[Entry], level: usize, held: Box<Held<'_, F, R>>) -> candle_core::Result<()>
where
    R: Send,
    F: FnOnce(Vec<SliceMut<'_>>) -> tpgm_core::Result<R> + Send,
{
    match rest.split_first() {
        None => {
            let Held { weights, work, out } = *held;
            *out = Some(work(weights));
            Ok(())
        }
        Some((entry, rest)) if level > 0 && level.is_multiple_of(LEVELS) => {
            elsewhere(entry, rest, level, held)
        }
        Some((entry, rest)) => lock(entry, rest, level, held),
    }
}

fn lock<R, F>(
    entry: &Entry,
    rest: &[Entry],
    level: usize,
    held: Box<Held<'_, F, R>>,
) -> candle_core::Result<()>
where
    R: Send,
    F: FnOnce(Vec<SliceMut<'_>>) -> tpgm_core::Result<R> + Send,
{
    entry.view.inplace_op1(&Lock { rest, level, held: Cell::new(Some(held)) })
}

/// [`lock`] on a new stack, while this one waits. A function of its own, to keep its variables off the other levels'
/// stacks.
#[cold]
#[inline(never)]
fn elsewhere<R, F>(
    entry: &Entry,
    rest: &[Entry],
    level: usize,
    held: Box<Held<'_, F, R>>,
) -> candle_core::Result<()>
where
    R: Send,
    F: FnOnce(Vec<SliceMut<'_>>) -> tpgm_core::Result<R> + Send,
{
    thread::scope(|scope| {
        let lock = move || lock(entry, rest, level, held);
        let thread = thread::Builder::new().stack_size(STACK).spawn_scoped(scope, lock)?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// The in-place operation that holds one variable's lock while those after it run.
struct Lock<'a, F, R> {
    rest: &'a [Entry],
    level: usize,
    held: Cell<Option<Box<Held<'a, F, R>>>>,
}

impl<R, F> InplaceOp1 for Lock<'_, F, R>
where
    R: Send,
    F: FnOnce(Vec<SliceMut<'_>>) -> tpgm_core::Result<R> + Send,
{
    fn name(&self) -> &'static str {
        "optimizer step"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> candle_core::Result<()> {
        let mut held: Box<Held<'_, F, R>> = self.held.take().expect("an operation runs once");
        held.weights.push(cpu_slice_mut(storage, layout)?);
        descend(self.rest, self.level + 1, held)
    }
}
