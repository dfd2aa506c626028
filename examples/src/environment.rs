//! What other libraries read from the environment when a process starts.

use std::env;
use std::num::NonZero;
#[cfg(unix)]
use std::{os::unix::process::CommandExt, process::Command};

/// candle splits element-wise work over threads that wait for each other in a loop, which costs more than it brings for
/// small tensors, and twice as much again when several models train at the same time: half of the processor time of
/// `domainnet_mini`. So each model gets its share of the processors.
#[cfg(unix)]
const THREADS: &str = "CANDLE_NUM_THREADS";

/// Asked by candle for every matrix product, and where it is not set, the number of processors is read from `/proc/cpuinfo` each time.
#[cfg(unix)]
const OF_PRODUCTS: &str = "RAYON_NUM_THREADS";

/// The C library of Linux hands freed memory back to the system, and every tensor gets fresh pages: a fifth of the
/// processor time of `domainnet_mini`.
#[cfg(unix)]
const KEEP_MEMORY: [(&str, &str); 3] = [
    ("MALLOC_MMAP_THRESHOLD_", "1073741824"),
    ("MALLOC_TRIM_THRESHOLD_", "4294967296"),
    ("MALLOC_TOP_PAD_", "67108864"),
];

/// Starts the program anew, in its place, with an environment for models of `threads` threads each: candle uses no more,
/// and freed memory is kept. Does nothing of this if `CANDLE_NUM_THREADS` is set, or on systems where a program cannot be
/// replaced. With more than one thread, the caller's [joins the pool](join_pool);
/// with one, rayon's pool has all processors, for reading data, and models train in pools of their own.
pub fn for_threads(threads: usize) {
    #[cfg(unix)]
    if let (None, Ok(program)) = (env::var_os(THREADS), env::current_exe()) {
        let mut command = Command::new(program);
        command.args(env::args_os().skip(1)).env(THREADS, threads.to_string()).envs(KEEP_MEMORY);
        if env::var_os(OF_PRODUCTS).is_none() {
            command.env(OF_PRODUCTS, threads.to_string());
        }
        // Returns only if it fails; then the program is merely slower.
        let _error = command.exec();
    }
    if threads > 1 {
        join_pool(threads);
    } else {
        // A thread that is alone in the pool could wait for one that reads images, and that one for the pool. So that reads on all
        // processors, and models train in pools of their own.
        let processors = std::thread::available_parallelism().map_or(1, NonZero::get);
        let _error = rayon::ThreadPoolBuilder::new().num_threads(processors).build_global();
    }
}

/// Makes the caller's thread, which trains, one of `threads` in rayon's pool. A thread outside of it sleeps while the pool works,
/// and the pool while the thread does: waking each other at every operation costs a small network a quarter of its time.
/// Does nothing if there is a pool already.
///
/// With one thread, nobody else may ask the pool for anything while the caller waits for them.
pub fn join_pool(threads: usize) {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).use_current_thread();
    // Fails if there is a pool; then the program is merely slower.
    let _error = pool.build_global();
}
