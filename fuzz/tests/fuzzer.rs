//! The targets under libFuzzer. The environment variable says which.
#![no_main]

use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use tpgm_fuzz::Run;

static TARGET: OnceLock<Run> = OnceLock::new();

fuzz_target!(
    init: {
        // libFuzzer's crate aborts at every panic, also at those of candle's reader of pickles that are caught and made
        // errors. Those that leave a target abort the process all the same.
        let _ = std::panic::take_hook();
        let name = std::env::var("TPGM_FUZZ_TARGET").expect("TPGM_FUZZ_TARGET is the name of a target");
        let target = tpgm_fuzz::target(&name).expect("TPGM_FUZZ_TARGET is the name of a target");
        TARGET.set(target).expect("it is set once");
    },
    |bytes: &[u8]| {
        if let Some(run) = TARGET.get() {
            run(bytes);
        }
    }
);
