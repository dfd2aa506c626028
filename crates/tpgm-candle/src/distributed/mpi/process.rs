//! Whether the process of another rank lives, where that can be seen: on the same machine, under Linux.

use std::{fs, io};

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
        Some(Self {
            place: format!("{} {}", boot.trim(), space.display()),
            number,
            begun: begun(number).ok()??,
        })
    }

    /// Whether it has ended, as far as `here`, this process, can see. It has not if that cannot be found out.
    pub(super) fn is_gone(&self, here: &Self) -> bool {
        self.place == here.place && begun(self.number).is_ok_and(|begun| begun != Some(self.begun))
    }
}

/// When a process began, if it runs.
fn begun(number: u32) -> io::Result<Option<u64>> {
    since(fs::read(format!("/proc/{number}/stat")))
}

/// What the file says. Other errors than that it is not there, such as too many open files, say nothing of the process.
fn since(stat: io::Result<Vec<u8>>) -> io::Result<Option<u64>> {
    /// It ended while the file was open.
    const ESRCH: i32 = 3;
    let stat = match stat {
        Ok(stat) => stat,
        Err(error) if error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(ESRCH) => {
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    let stat = String::from_utf8_lossy(&stat);
    // Behind its name, which may hold anything: its state first, and the start as the 20th word.
    let words: Vec<&str> =
        stat.rsplit_once(')').map(|(_, words)| words.split_whitespace().collect()).unwrap_or_default();
    match (words.first(), words.get(19).and_then(|word| word.parse().ok())) {
        // Ended, and nobody has taken note yet.
        (Some(&"Z" | &"X"), _) => Ok(None),
        (Some(_), Some(begun)) => Ok(Some(begun)),
        _ => Err(io::ErrorKind::InvalidData.into()),
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
        let there =
            Process { number: child.id(), begun: begun(child.id()).unwrap().unwrap(), ..here.clone() };
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

    #[test]
    fn only_a_file_that_is_not_there_says_that_a_process_ended() {
        let failed = |code| since(Err(io::Error::from_raw_os_error(code)));
        // ENOENT, ESRCH; EMFILE, EACCES.
        assert!(failed(2).unwrap().is_none() && failed(3).unwrap().is_none());
        assert!(failed(24).is_err() && failed(13).is_err());
        let stat =
            |start: &[u8]| [start, b" 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20\n"].concat();
        assert_eq!(since(Ok(stat(b"7 (a) \xff (b) S"))).unwrap(), Some(4711));
        assert_eq!(since(Ok(stat(b"7 (a) Z"))).unwrap(), None);
        assert!(since(Ok(b"7 (a) S 1".to_vec())).is_err() && since(Ok(Vec::new())).is_err());
    }
}
