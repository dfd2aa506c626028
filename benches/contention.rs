//! How much of the processors others used while we measured (Linux).
//!
//! Other work on the machine slows contestants unevenly: one that waits for its slowest thread suffers more than one
//! whose threads take work as they go. A run during which others used more than a few percent should be repeated.

use std::fs::read_to_string;

/// Ticks since the start of the machine, as the kernel counts them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ticks {
    /// All processors, idle or not.
    all: u64,
    /// All processors, not idle; time taken by the hypervisor counts as busy.
    busy: u64,
    /// Our own processes.
    own: u64,
}

impl Ticks {
    /// Now; `children` are the processes of the peers. None where the kernel does not say.
    pub fn now(children: impl IntoIterator<Item = u32>) -> Option<Self> {
        let (all, busy) = machine(&read_to_string("/proc/stat").ok()?)?;
        let mut own = process(&read_to_string("/proc/self/stat").ok()?)?;
        for child in children {
            own += process(&read_to_string(format!("/proc/{child}/stat")).ok()?)?;
        }
        Some(Self { all, busy, own })
    }

    /// Share of all processors' time since `start` that neither we used nor was idle, in `[0, 1]`.
    pub fn others_since(self, start: Self) -> f64 {
        let all = self.all.saturating_sub(start.all);
        let busy = self.busy.saturating_sub(start.busy);
        let own = self.own.saturating_sub(start.own);
        busy.saturating_sub(own) as f64 / all.max(1) as f64
    }
}

/// First line: `cpu user nice system idle iowait irq softirq steal guest guest_nice`; guests are part of user.
fn machine(stat: &str) -> Option<(u64, u64)> {
    let mut words = stat.lines().next()?.split_whitespace();
    if words.next() != Some("cpu") {
        return None;
    }
    let ticks: Vec<u64> = words.take(8).map_while(|word| word.parse().ok()).collect();
    let all = ticks.iter().sum();
    Some((all, all - ticks.get(3)? - ticks.get(4)?))
}

/// Fields 14 and 15, `utime` and `stime`; the second field is a name in parentheses and may contain anything.
fn process(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut times = rest.split_whitespace().skip(11);
    Some(times.next()?.parse::<u64>().ok()? + times.next()?.parse::<u64>().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_read_as_the_kernel_writes_them() {
        let stat = "cpu  100 5 20 800 50 1 2 22 7 0\ncpu0 50 2 10 400 25 0 1 11 3 0\n";
        assert_eq!(machine(stat), Some((1000, 150)));
        assert_eq!(machine("intr 1 2"), None);
        let stat = "42 (a) b) S 1 42 42 0 -1 4194304 1 2 3 4 30 12 5 6 20 0 1 0 99";
        assert_eq!(process(stat), Some(42));
        assert_eq!(process("42 (a) S 1"), None);
    }

    #[test]
    fn what_is_neither_ours_nor_idle_is_of_others() {
        let at = |all, busy, own| Ticks { all, busy, own };
        assert_eq!(at(1200, 250, 130).others_since(at(1000, 100, 30)), 0.25);
        assert_eq!(at(1200, 110, 60).others_since(at(1000, 100, 30)), 0.0);
    }
}
