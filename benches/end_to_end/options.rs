//! The command line.

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use clap::{Parser, ValueEnum};

use crate::network::Network;

/// Where rows go if not told otherwise.
const RESULTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/results");

/// Measures whole training steps: forward, backward, optimizer, projection update
#[derive(Debug, Parser)]
#[command(bin_name = "cargo xtask bench --end-to-end")]
pub(crate) struct Args {
    /// What is trained; may be repeated. All if not given
    #[arg(long = "network", value_enum)]
    networks: Vec<Network>,
    /// Threads of every contestant. All processors if not given
    #[arg(long)]
    threads: Option<usize>,
    /// Measured steps, after the warm-up
    #[arg(long, default_value_t = 12)]
    pub(crate) rounds: usize,
    /// Also measure others
    #[arg(long, value_enum)]
    pub(crate) vs: Option<Peer>,
    /// A Python interpreter with PyTorch [default: python3]
    #[arg(long, requires = "vs")]
    python: Option<PathBuf>,
    /// Checkout of the published FTP code (GT-RIPL/FTP)
    #[arg(long, requires = "vs")]
    pub(crate) ftp: Option<PathBuf>,
    /// Checkout of the published TPGM code (PotatoTian/TPGM)
    #[arg(long, requires = "vs")]
    pub(crate) tpgm: Option<PathBuf>,
    /// File to which one JSON line per row is appended [default: benches/results/cpu.jsonl]
    #[arg(long)]
    out: Option<PathBuf>,
    /// Print the tables and write no rows
    #[arg(long, conflicts_with = "out")]
    no_rows: bool,
}

/// Others to compare with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Peer {
    /// The same loop in PyTorch and, given their code, with the published methods
    Torch,
}

impl Args {
    /// Refuses what cannot be measured.
    ///
    /// # Errors
    ///
    /// A message that names the option.
    pub(crate) fn check(&self) -> Result<()> {
        ensure!(self.rounds > 0, "--rounds must be at least 1");
        ensure!(self.threads != Some(0), "--threads must be at least 1");
        Ok(())
    }

    /// What is trained.
    pub(crate) fn networks(&self) -> Vec<Network> {
        if self.networks.is_empty() { Network::value_variants().to_vec() } else { self.networks.clone() }
    }

    /// Threads of every contestant.
    ///
    /// # Errors
    ///
    /// If the number of processors is not known and no other was given.
    pub(crate) fn threads(&self) -> Result<usize> {
        Ok(match self.threads {
            Some(threads) => threads,
            None => std::thread::available_parallelism()?.get(),
        })
    }

    /// The interpreter for the peers.
    pub(crate) fn python(&self) -> PathBuf {
        self.python.clone().unwrap_or_else(|| "python3".into())
    }

    /// The file for the rows, if they are to be written.
    ///
    /// # Errors
    ///
    /// If it is the usual file and its folder is not there.
    pub(crate) fn results_file(&self) -> Result<Option<PathBuf>> {
        if self.no_rows {
            return Ok(None);
        }
        if let Some(path) = &self.out {
            return Ok(Some(path.clone()));
        }
        let folder = Path::new(RESULTS);
        ensure!(folder.is_dir(), "there is no folder `{RESULTS}`; give --out FILE or --no-rows");
        Ok(Some(folder.join("cpu.jsonl")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(options: &str) -> Result<Args, clap::Error> {
        Args::try_parse_from(["bench"].into_iter().chain(options.split_whitespace()))
    }

    #[test]
    fn options_are_read_and_mistakes_are_named() {
        let args = parse("--network mini --threads 1 --rounds 3 --out rows").unwrap();
        assert_eq!((args.networks(), args.threads().unwrap(), args.rounds), (vec![Network::Mini], 1, 3));
        assert_eq!(args.results_file().unwrap(), Some("rows".into()));
        assert_eq!(parse("").unwrap().networks().len(), 2);
        assert_eq!(parse("--no-rows").unwrap().results_file().unwrap(), None);
        for (options, part) in [("--ftp p", "--vs"), ("--network gpt", "minilm"), ("--vs candle", "torch")] {
            let error = parse(options).unwrap_err().to_string();
            assert!(error.contains(part), "{options}: {error}");
        }
        for (options, part) in [("--rounds 0", "--rounds"), ("--threads 0", "--threads")] {
            let error = parse(options).unwrap().check().unwrap_err().to_string();
            assert!(error.contains(part), "{options}: {error}");
        }
    }
}
