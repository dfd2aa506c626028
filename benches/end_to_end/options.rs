//! The command line.

use anyhow::{Result, ensure};
use clap::builder::PossibleValuesParser;
use clap::{Parser, ValueEnum};
use tpgm_benches::options::{self, RowArgs, TorchArgs};
use tpgm_examples::device::{DeviceArgs, Place};

use crate::network::Network;

/// Measures whole training steps: forward, backward, optimizer, projection update
#[derive(Debug, Parser)]
#[command(bin_name = "cargo xtask bench --end-to-end")]
pub(crate) struct Args {
    /// What is trained; may be repeated. All if not given
    #[arg(long = "network", value_enum)]
    networks: Vec<Network>,
    /// By which method; may be repeated. All if not given
    #[arg(long = "method", value_parser = PossibleValuesParser::new(crate::METHODS))]
    methods: Vec<String>,
    #[command(flatten)]
    device: DeviceArgs,
    /// Threads of every contestant on the host. All processors if not given
    #[arg(long)]
    threads: Option<usize>,
    /// Measured steps, after the warm-up
    #[arg(long, default_value_t = 12)]
    pub(crate) rounds: usize,
    /// Also measure others
    #[arg(long, value_enum)]
    pub(crate) vs: Option<Peer>,
    #[command(flatten)]
    pub(crate) torch: TorchArgs,
    #[command(flatten)]
    pub(crate) rows: RowArgs,
    /// Trains for a copy of this program, which asks on standard input. The names of what is trained end in SUFFIX
    #[arg(long, value_name = "SUFFIX", hide = true)]
    pub(crate) serve: Option<String>,
}

/// Others to compare with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Peer {
    /// The same loop in PyTorch and, given their code, with the published methods
    Torch,
    /// The same loop with candle-nn's AdamW, and ours, with freed memory of the host handed back and kept; on a GPU kept only
    Candle,
    /// All of them
    All,
}

impl Peer {
    /// Whether PyTorch is asked for.
    pub(crate) fn torch(self) -> bool {
        self != Peer::Candle
    }

    /// Whether candle's optimizer is asked for.
    pub(crate) fn candle(self) -> bool {
        self != Peer::Torch
    }
}

impl Args {
    /// Refuses what cannot be measured.
    ///
    /// # Errors
    ///
    /// A message that names the option.
    pub(crate) fn check(&self) -> Result<()> {
        ensure!(self.rounds > 0, "--rounds must be at least 1");
        self.threads().map(drop)
    }

    /// Where it is trained.
    pub(crate) fn place(&self) -> Place {
        self.device.place
    }

    /// What is trained.
    pub(crate) fn networks(&self) -> Vec<Network> {
        if self.networks.is_empty() { Network::value_variants().to_vec() } else { self.networks.clone() }
    }

    /// Whether this method is asked for.
    pub(crate) fn trains_by(&self, method: &str) -> bool {
        self.methods.is_empty() || self.methods.iter().any(|name| name == method)
    }

    /// Threads of every contestant.
    ///
    /// # Errors
    ///
    /// Zero, or the number of processors is not known and no other was given.
    pub(crate) fn threads(&self) -> Result<usize> {
        options::threads(self.threads)
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
        assert_eq!(args.rows.file("cpu").unwrap(), Some("rows".into()));
        assert_eq!((parse("").unwrap().networks().len(), parse("").unwrap().place()), (5, Place::Cpu));
        let args = parse("--method adamw --method adamw+ftp").unwrap();
        assert!(args.trains_by("adamw+ftp") && !args.trains_by("adamw+spd"));
        assert!(parse("").unwrap().trains_by("adamw+spd"));
        assert_eq!(parse("--device cuda:1").unwrap().place(), Place::Cuda(1));
        for (options, part) in [
            ("--ftp p", "--vs"),
            ("--network gpt", "minilm"),
            ("--method sgd", "adamw+tpgm"),
            ("--device gpu", "`gpu`"),
            ("--vs mlx", "torch"),
        ] {
            let error = parse(options).unwrap_err().to_string();
            assert!(error.contains(part), "{options}: {error}");
        }
        for (options, part) in [("--rounds 0", "--rounds"), ("--threads 0", "--threads")] {
            let error = parse(options).unwrap().check().unwrap_err().to_string();
            assert!(error.contains(part), "{options}: {error}");
        }
    }
}
