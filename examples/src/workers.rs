//! Independent tasks on a few threads.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result};

/// As many as there are processors, at most 4.
pub fn default_count() -> usize {
    std::thread::available_parallelism().map_or(1, |processors| processors.get().min(4))
}

/// Processors for each of some runs at the same time, at least 1.
pub fn threads_of(runs: usize) -> usize {
    let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    (processors / runs.max(1)).max(1)
}

/// Runs `work` on every task, at most `workers` at a time, and returns the results in the order of the tasks.
///
/// Each worker has a thread pool of its own with `threads` threads, of which it is one: small models train faster side by side
/// than one after the other on several threads, because much of candle's work is not parallel.
///
/// # Errors
///
/// The first error of a task; tasks that have not begun then never do.
pub fn run<T: Send, R: Send>(
    workers: usize,
    threads: usize,
    tasks: Vec<T>,
    work: impl Fn(T) -> Result<R> + Sync,
) -> Result<Vec<R>> {
    let count = tasks.len();
    let queue = Mutex::new(tasks.into_iter().enumerate().collect::<VecDeque<_>>());
    let results = Mutex::new(Vec::with_capacity(count));
    let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
    let worker = || -> Result<()> {
        // See `environment::join_pool`. Such a pool is never freed, but its threads end.
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).use_current_thread();
        let pool = pool.build().context("no thread for a worker")?;
        pool.install(|| {
            while let Some((number, task)) = next() {
                let result = work(task).inspect_err(|_| {
                    queue.lock().unwrap_or_else(PoisonError::into_inner).clear();
                })?;
                results.lock().unwrap_or_else(PoisonError::into_inner).push((number, result));
            }
            Ok(())
        })
    };
    std::thread::scope(|scope| {
        let handles: Vec<_> = (0..workers.clamp(1, count.max(1))).map(|_| scope.spawn(worker)).collect();
        handles
            .into_iter()
            .try_for_each(|handle| handle.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })?;
    let mut results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
    results.sort_by_key(|(number, _)| *number);
    Ok(results.into_iter().map(|(_, result)| result).collect())
}

#[cfg(test)]
mod tests {
    use anyhow::bail;

    use super::*;

    #[test]
    fn results_come_in_the_order_of_the_tasks() {
        let squares = run(3, 1, (0..20).collect(), |n: u64| {
            assert_eq!(rayon::current_num_threads(), 1);
            Ok(n * n)
        });
        assert_eq!(squares.unwrap(), (0..20).map(|n| n * n).collect::<Vec<_>>());
        assert!(run(2, 1, Vec::<u32>::new(), Ok).unwrap().is_empty());
    }

    #[test]
    fn the_first_error_ends_the_run() {
        let error = run(1, 2, vec![1, 2, 3], |n| {
            assert!(n < 3, "task 3 never begins");
            if n == 2 { bail!("task {n}") } else { Ok(()) }
        });
        assert_eq!(error.unwrap_err().to_string(), "task 2");
    }
}
