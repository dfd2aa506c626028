//! Options that both harnesses have.

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use tpgm_core::DType;

use crate::TorchOptions;

/// Where rows go if not told otherwise.
pub const RESULTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/results");

/// Where PyTorch and the published code are. Belongs to an option `--vs`.
#[derive(Debug, Clone, clap::Args)]
pub struct TorchArgs {
    /// A Python interpreter with PyTorch [default: python3]
    #[arg(long, requires = "vs")]
    python: Option<PathBuf>,
    /// Checkout of the published FTP code (GT-RIPL/FTP)
    #[arg(long, requires = "vs")]
    ftp: Option<PathBuf>,
    /// Checkout of the published TPGM code (PotatoTian/TPGM)
    #[arg(long, requires = "vs")]
    tpgm: Option<PathBuf>,
}

impl TorchArgs {
    /// How to start it, on a device in PyTorch's words.
    pub fn options(&self, threads: usize, device: &str, dtype: DType) -> TorchOptions {
        TorchOptions {
            python: self.python.clone().unwrap_or_else(|| "python3".into()),
            ftp: self.ftp.clone(),
            tpgm: self.tpgm.clone(),
            threads,
            device: device.to_owned(),
            dtype,
        }
    }
}

/// Where rows go.
#[derive(Debug, Clone, clap::Args)]
pub struct RowArgs {
    /// File to which one JSON line per row is appended [default: benches/results/DEVICE.jsonl]
    #[arg(long)]
    out: Option<PathBuf>,
    /// Print the table and write no rows
    #[arg(long, conflicts_with = "out")]
    no_rows: bool,
}

impl RowArgs {
    /// Whether a file was named.
    pub fn has_file(&self) -> bool {
        self.out.is_some()
    }

    /// The file for the rows of a run on `device`, if they are to be written.
    ///
    /// # Errors
    ///
    /// If it is the usual file and its folder is not there: the program may run far from its repository.
    pub fn file(&self, device: &str) -> Result<Option<PathBuf>> {
        if self.no_rows {
            return Ok(None);
        }
        if let Some(path) = &self.out {
            return Ok(Some(path.clone()));
        }
        let folder = Path::new(RESULTS);
        ensure!(folder.is_dir(), "there is no folder `{RESULTS}`; give --out FILE or --no-rows");
        Ok(Some(folder.join(format!("{}.jsonl", file_stem(device)))))
    }
}

/// Threads of every contestant: those asked for, or as many as there are processors.
///
/// # Errors
///
/// Zero, or the number of processors is not known.
pub fn threads(asked: Option<usize>) -> Result<usize> {
    ensure!(asked != Some(0), "--threads must be at least 1");
    Ok(match asked {
        Some(threads) => threads,
        None => std::thread::available_parallelism()?.get(),
    })
}

/// Lower case, with one `-` for whatever is neither letter nor digit: `NVIDIA H100 80GB HBM3` is `nvidia-h100-80gb-hbm3`.
pub fn file_stem(name: &str) -> String {
    let words = name.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
    words.map(str::to_ascii_lowercase).collect::<Vec<_>>().join("-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_go_to_the_file_of_the_device() {
        let args = |out: Option<&str>, no_rows| RowArgs { out: out.map(PathBuf::from), no_rows };
        let name = |device| args(None, false).file(device).unwrap().unwrap().file_name().unwrap().to_owned();
        assert_eq!(name("cpu"), "cpu.jsonl");
        assert_eq!(name("NVIDIA H100 80GB HBM3"), "nvidia-h100-80gb-hbm3.jsonl");
        assert_eq!(args(Some("rows"), false).file("cpu").unwrap(), Some("rows".into()));
        assert_eq!(args(None, true).file("cpu").unwrap(), None);
    }

    #[test]
    fn threads_are_those_asked_for() {
        assert_eq!(threads(Some(3)).unwrap(), 3);
        assert!(threads(None).unwrap() > 0);
        assert!(threads(Some(0)).unwrap_err().to_string().contains("--threads"));
    }
}
