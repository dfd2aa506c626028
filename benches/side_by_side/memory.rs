//! Memory that a call needs besides what was there before (Linux).

use std::fs::write;

use tpgm_benches::machine::memory_field;

/// Calls `work` and returns, beside its result, by how many bytes the memory of a process grew meanwhile at its peak; `None`
/// where the kernel does not say. `process` is the one that does the work.
pub(crate) fn peak<R>(process: u32, work: impl FnOnce() -> R) -> (R, Option<u64>) {
    let status = format!("/proc/{process}/status");
    // 5: the peak is reset to what is used now.
    let before =
        write(format!("/proc/{process}/clear_refs"), "5").ok().and_then(|()| memory_field(&status, "VmRSS"));
    let result = work();
    let peak = before.and_then(|before| Some(memory_field(&status, "VmHWM")?.saturating_sub(before)));
    (result, peak)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(target_os = "linux")]
    #[test]
    fn what_is_freed_again_is_seen() {
        const SIZE: usize = 96 << 20;
        let (sum, grown) = peak(std::process::id(), || {
            let bytes = std::hint::black_box(vec![1u8; SIZE]);
            bytes.iter().step_by(4096).map(|byte| u64::from(*byte)).sum::<u64>()
        });
        assert_eq!(sum, SIZE as u64 / 4096);
        // Some containers forbid it.
        let Some(grown) = grown.map(|grown| grown as usize) else { return };
        // Other tests of this process allocate too, but not as much.
        assert!((SIZE * 9 / 10..SIZE * 2).contains(&grown), "{grown}");
        let ((), grown) = peak(std::process::id(), || ());
        assert!((grown.unwrap() as usize) < SIZE / 2);
    }
}
