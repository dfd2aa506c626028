//! What other libraries read from the environment when a process starts.

use std::env;
#[cfg(unix)]
use std::{os::unix::process::CommandExt, process::Command};

/// candle splits element-wise work over threads that wait for each other in a loop, which costs more than it brings for
/// small tensors, and twice as much again when several models train at the same time: half of the processor time of
/// `domainnet_mini`. The C library of Linux hands freed memory back to the system, and every tensor gets fresh pages: a
/// fifth of the rest.
#[cfg(unix)]
const VARIABLES: [(&str, &str); 4] = [
    ("CANDLE_NUM_THREADS", "1"),
    ("MALLOC_MMAP_THRESHOLD_", "1073741824"),
    ("MALLOC_TRIM_THRESHOLD_", "4294967296"),
    ("MALLOC_TOP_PAD_", "67108864"),
];

/// Starts the program anew, in its place, with an environment for small models: one thread per model, and freed memory is
/// kept. Does nothing if `CANDLE_NUM_THREADS` is set, or on systems where a program cannot be replaced.
pub fn for_small_models() {
    #[cfg(unix)]
    if let (None, Ok(program)) = (env::var_os(VARIABLES[0].0), env::current_exe()) {
        // Returns only if it fails; then the program is merely slower.
        let _error = Command::new(program).args(env::args_os().skip(1)).envs(VARIABLES).exec();
    }
}
