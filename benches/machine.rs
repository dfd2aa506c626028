//! Where, when and from which commit a number comes.

use std::path::Path;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// Provenance of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// UTC, as `2024-01-02T03:04:05Z`.
    pub date: String,
    /// The environment variable `TPGM_COMMIT` where it is set, for programs that run far from their sources; else the commit
    /// of the working tree, with `-dirty` if it has changes; `unknown` outside a repository.
    pub commit: String,
    /// Model name of the processor.
    pub cpu: String,
    /// Operating system and architecture.
    pub os: String,
    /// Version of this workspace.
    pub version: String,
}

impl Machine {
    /// This machine, now.
    pub fn here() -> Self {
        let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        Self {
            date: utc(seconds),
            commit: commit(),
            cpu: cpu(),
            os: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }
}

/// Bytes that a program can still take without another being pushed out; `None` where the kernel does not say (Linux does).
pub fn available_memory() -> Option<u64> {
    memory_field("/proc/meminfo", "MemAvailable")
}

/// Bytes in a line of one of Linux's status files, such as `VmRSS:   1234 kB`.
pub fn memory_field(path: impl AsRef<Path>, field: &str) -> Option<u64> {
    bytes(&std::fs::read_to_string(path).ok()?, field)
}

fn bytes(status: &str, field: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
}

fn output(program: &str, args: &[&str]) -> Option<String> {
    let output = Command::new(program).args(args).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}

fn commit() -> String {
    if let Ok(commit) = std::env::var("TPGM_COMMIT") {
        return commit;
    }
    let Some(hash) = output("git", &["rev-parse", "--short=12", "HEAD"]) else {
        return "unknown".to_owned();
    };
    match output("git", &["status", "--porcelain", "--untracked-files=no"]) {
        Some(changes) if changes.is_empty() => hash,
        _ => format!("{hash}-dirty"),
    }
}

fn cpu() -> String {
    let linux = std::fs::read_to_string("/proc/cpuinfo").ok().and_then(|info| cpu_model(&info));
    linux
        .or_else(|| output("sysctl", &["-n", "machdep.cpu.brand_string"]))
        .unwrap_or_else(|| "unknown".to_owned())
}

fn cpu_model(info: &str) -> Option<String> {
    let line = info.lines().find(|line| line.starts_with("model name"))?;
    let (_, name) = line.split_once(':')?;
    Some(name.trim().to_owned())
}

/// Seconds since 1970 as a UTC date and time.
fn utc(seconds: u64) -> String {
    let (mut day, second) = (seconds / 86_400, seconds % 86_400);
    let mut year = 1970;
    let leap = |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    while day >= 365 + u64::from(leap(year)) {
        day -= 365 + u64::from(leap(year));
        year += 1;
    }
    let february = 28 + u64::from(leap(year));
    let mut month = 1;
    for days in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30] {
        if day < days {
            break;
        }
        day -= days;
        month += 1;
    }
    format!(
        "{year:04}-{month:02}-{:02}T{:02}:{:02}:{:02}Z",
        day + 1,
        second / 3600,
        second / 60 % 60,
        second % 60
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    // Expected values from `date -u -d @SECONDS`.
    #[test]
    fn seconds_become_dates() {
        let known = [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_704_067_199, "2023-12-31T23:59:59Z"),
            (1_735_603_200, "2024-12-31T00:00:00Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ];
        for (seconds, expected) in known {
            assert_eq!(utc(seconds), expected);
        }
    }

    #[test]
    fn fields_of_memory_are_found_by_their_whole_name() {
        let status = "Name:\tx\nVmHWM:\t  20 kB\nVmRSS:\t    7 kB\n";
        assert_eq!(bytes(status, "VmRSS"), Some(7 << 10));
        assert_eq!(bytes(status, "VmHWM"), Some(20 << 10));
        assert_eq!(bytes(status, "VmHW"), None);
    }

    #[test]
    fn the_processor_is_named() {
        let info = "processor\t: 0\nmodel name\t: AMD EPYC 7763\nprocessor\t: 1\nmodel name\t: other\n";
        assert_eq!(cpu_model(info).as_deref(), Some("AMD EPYC 7763"));
        assert_eq!(cpu_model("Hardware : BCM2835"), None);
    }
}
