//! Whether the process of another rank lives, where that can be seen: on the same machine, under Linux.

use std::fs;

use serde::{Deserialize, Serialize};

/// A process as others find it again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Process {
    /// The start of the machine and the space of process numbers in it.
    place: String,
    number: u32,
    /// Since when it runs, in ticks: numbers are given again.
    begun: u64,
}

impl Process {
    /// This process.
    pub(super) fn own() -> Option<Self> {
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
        let space = fs::read_link("/proc/self/ns/pid").ok()?;
        let number = std::process::id();
        Some(Self { place: format!("{} {}", boot.trim(), space.display()), number, begun: begun(number)? })
    }

    /// Whether it has ended, as far as `here`, this process, can see.
    pub(super) fn is_gone(&self, here: &Self) -> bool {
        self.place == here.place && begun(self.number) != Some(self.begun)
    }
}

/// When a process began, if it runs.
fn begun(number: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{number}/stat")).ok()?;
    // Behind its name, which may hold anything: its state first, and the start as the 20th word.
    let words: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    match words.first()? {
        // Ended, and nobody has taken note yet.
        &"Z" | &"X" => None,
        _ => words.get(19)?.parse().ok(),
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_gone_when_it_ended() {
        let here = Process::own().unwrap();
        assert!(!here.is_gone(&here));
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let there = Process { number: child.id(), begun: begun(child.id()).unwrap(), ..here.clone() };
        assert!(!there.is_gone(&here));
        child.kill().unwrap();
        // A child that nobody has waited for is still in the list.
        while !there.is_gone(&here) {
            std::thread::yield_now();
        }
        child.wait().unwrap();
        assert!(there.is_gone(&here));
        // Another process with the number of one that ended; and one that cannot be seen from here.
        assert!(Process { begun: here.begun + 1, ..here.clone() }.is_gone(&here));
        assert!(!Process { place: "elsewhere".to_owned(), begun: 0, ..here.clone() }.is_gone(&here));
    }
}
