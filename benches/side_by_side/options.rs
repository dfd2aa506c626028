//! The command line.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use clap::{Parser, ValueEnum};
use tpgm_benches::options::{self, RowArgs, TorchArgs};
use tpgm_benches::{Method, Model};
use tpgm_core::DType;

use crate::compare::Limits;
use crate::quick;

/// Compares methods with the speed of memory and with PyTorch, in one run
#[derive(Debug, Parser)]
#[command(bin_name = "cargo xtask bench")]
pub(crate) struct Args {
    /// Where our methods run
    #[arg(long, value_enum, default_value_t = Place::Cpu)]
    pub(crate) backend: Place,
    /// Which GPU, counted from 0; for --backend cuda
    #[arg(long, default_value_t = 0)]
    pub(crate) device: usize,
    /// Whose tensors: vit-b-16, resnet-50, minilm, clip-vit-l-14, llama-3.2-1b, or tiny to try the command itself [default:
    /// vit-b-16; tiny when emulated]
    #[arg(long)]
    model: Option<Model>,
    /// What to measure, for example adamw+ftp; may be repeated. All methods if not given
    #[arg(long = "method", value_parser = Method::by_name)]
    pub(crate) methods: Vec<Method>,
    /// Element type of weights, gradients and anchors: f32, bf16, f16 or f64. State is f32, or f64 for f64
    #[arg(long, value_parser = dtype, default_value = "f32")]
    pub(crate) dtype: DType,
    /// Threads of every contestant on the host. All processors if not given
    #[arg(long)]
    threads: Option<usize>,
    /// The short form, of about a minute: a few methods with the tensors of resnet-50, no rows; fails if one is far slower
    /// than memory or a plain loop allow
    #[arg(long, conflicts_with_all = ["methods", "model", "vs", "out"])]
    pub(crate) quick: bool,
    /// Instead of a model: tensors of equal size, from 1 million to 1000 million parameters and from 1 to 10,000 tensors, as far
    /// as memory goes; a few methods if none is given
    #[arg(long, conflicts_with_all = ["model", "vs", "quick", "parts"])]
    pub(crate) scaling: bool,
    /// Measured rounds, after the warm-up [default: 15; 7 with --quick and --scaling]
    #[arg(long)]
    rounds: Option<usize>,
    /// No more rounds begin after so many seconds, which methods share: what was measured by then is kept
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..), conflicts_with = "quick")]
    time_limit: Option<u64>,
    /// Also measure others, on the same device
    #[arg(long, value_enum)]
    pub(crate) vs: Option<Peer>,
    /// The program with candle's optimizers [default: `cargo xtask bench` builds it from benches/peers/candle]
    #[arg(long, requires = "vs")]
    pub(crate) candle: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) torch: TorchArgs,
    /// After the rounds of a method, as many in which each of its parts is timed: the kernels of a GPU, the calls of a
    /// projection update
    #[arg(long)]
    pub(crate) parts: bool,
    #[command(flatten)]
    rows: RowArgs,
    /// Measure nothing: write benches/RESULTS.md and its plots from all rows that are there
    #[arg(long)]
    pub(crate) page: bool,
}

/// A place where our methods run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Place {
    /// The CPU backend
    Cpu,
    /// The CUDA backend, on an NVIDIA GPU
    Cuda,
    /// The CUDA backend's kernels on the host, with the model tiny: tries the command, measures nothing
    Emulated,
}

/// Others to compare with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Peer {
    /// PyTorch's optimizers and, given their code, the published methods
    Torch,
    /// candle-nn's and candle-optimisers' AdamW, with freed memory handed back and kept; f32 on the CPU
    Candle,
    /// All of them
    All,
}

impl Args {
    /// Refuses what cannot be measured.
    ///
    /// # Errors
    ///
    /// A message that names the option.
    pub(crate) fn check(&self) -> Result<()> {
        ensure!(self.rounds() > 0, "--rounds must be at least 1");
        ensure!(!self.quick || self.backend == Place::Cpu, "--quick measures the CPU backend");
        self.threads()?;
        ensure!(
            self.backend != Place::Emulated || self.model() == Model::Tiny,
            "--backend emulated takes --model tiny only: it tries the command and measures nothing"
        );
        ensure!(
            self.backend != Place::Emulated || self.vs.is_none(),
            "--backend emulated has nothing that could be compared: leave --vs out"
        );
        ensure!(
            self.backend != Place::Emulated || !self.scaling,
            "--backend emulated measures nothing: leave --scaling out"
        );
        ensure!(
            self.vs != Some(Peer::Candle) || self.can_compare_with(Peer::Candle),
            "--vs candle compares f32 on the CPU only"
        );
        if let Some(warning) = self.warning().filter(|_| self.rows.has_file()) {
            bail!("--out: {warning}");
        }
        Ok(())
    }

    /// Whether `peer` is among those to compare with.
    pub(crate) fn compares_with(&self, peer: Peer) -> bool {
        self.vs.is_some_and(|vs| vs == peer || vs == Peer::All && self.can_compare_with(peer))
    }

    /// candle's optimizers are measured where they are used: not on a GPU, and with moments in f32.
    fn can_compare_with(&self, peer: Peer) -> bool {
        peer != Peer::Candle || self.backend == Place::Cpu && self.dtype == DType::F32
    }

    /// Whose tensors.
    pub(crate) fn model(&self) -> Model {
        self.model.unwrap_or(match self.backend {
            Place::Emulated => Model::Tiny,
            _ if self.quick => Model::ResNet50,
            _ => Model::VitB16,
        })
    }

    /// How much is measured, if it begins now.
    pub(crate) fn limits(&self) -> Limits {
        let until = self.time_limit.map(|seconds| Instant::now() + Duration::from_secs(seconds));
        Limits { rounds: self.rounds(), until }
    }

    /// Measured rounds.
    fn rounds(&self) -> usize {
        self.rounds.unwrap_or(if self.quick || self.scaling { quick::ROUNDS } else { 15 })
    }

    /// Why the numbers of this run mean nothing, if they do.
    pub(crate) fn warning(&self) -> Option<&'static str> {
        if self.backend == Place::Emulated {
            return Some("emulated kernels: these times say nothing about a GPU, and no rows are written");
        }
        (self.model() == Model::Tiny).then_some(
            "the tensors of `tiny` fit in any cache: these times mean nothing, and no rows are written",
        )
    }

    /// Threads of every contestant.
    ///
    /// # Errors
    ///
    /// Zero, or the number of processors is not known and no other was given.
    pub(crate) fn threads(&self) -> Result<usize> {
        options::threads(self.threads)
    }

    /// The device of this run in PyTorch's words.
    pub(crate) fn torch_device(&self) -> String {
        match self.backend {
            Place::Cpu | Place::Emulated => "cpu".to_owned(),
            Place::Cuda => format!("cuda:{}", self.device),
        }
    }

    /// The file for the rows of a run on `device`, if they are to be written.
    ///
    /// # Errors
    ///
    /// If it is the usual file and its folder is not there: the program may run far from its repository.
    pub(crate) fn results_file(&self, device: &str) -> Result<Option<PathBuf>> {
        if self.quick || self.warning().is_some() {
            return Ok(None);
        }
        self.rows.file(device)
    }
}

fn dtype(name: &str) -> Result<DType, String> {
    DType::ALL
        .into_iter()
        .find(|dtype| dtype.name() == name)
        .ok_or_else(|| format!("no element type `{name}`; known are f64, f32, f16, bf16"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(options: &str) -> Result<Args, clap::Error> {
        Args::try_parse_from(["bench"].into_iter().chain(options.split_whitespace()))
    }

    #[test]
    fn options_are_read() {
        let args = parse("--model llama-3.2-1b --dtype bf16 --method adamw --method project-l2").unwrap();
        assert_eq!((args.model(), args.dtype), (Model::Llama32B1, DType::BF16));
        assert_eq!(args.methods.iter().map(|m| m.name).collect::<Vec<_>>(), ["adamw", "project-l2"]);
        assert_eq!((args.backend, args.torch_device().as_str()), (Place::Cpu, "cpu"));
        assert_eq!(parse("").unwrap().model(), Model::VitB16);
        assert_eq!(parse("--backend emulated").unwrap().model(), Model::Tiny);
        assert_eq!(parse("--backend cuda --device 1").unwrap().torch_device(), "cuda:1");
        assert!(parse("").unwrap().limits().until.is_none());
        let (limits, now) = (parse("--rounds 3 --time-limit 100").unwrap().limits(), Instant::now());
        let left = limits.until.unwrap() - now;
        assert!(limits.rounds == 3 && left.as_secs() >= 99 && left.as_secs() <= 100, "{left:?}");
        let args = parse("--vs torch --ftp a").unwrap();
        let torch = args.torch.options(2, "cpu", args.dtype);
        assert_eq!((torch.python, torch.ftp, torch.tpgm), ("python3".into(), Some("a".into()), None));
        assert!(args.compares_with(Peer::Torch) && !args.compares_with(Peer::Candle));
        let all = |more: &str| {
            let args = parse(&format!("--vs all {more}")).unwrap();
            [Peer::Torch, Peer::Candle].map(|peer| args.compares_with(peer))
        };
        assert_eq!((all(""), all("--dtype bf16")), ([true, true], [true, false]));
    }

    #[test]
    fn mistakes_are_named() {
        for (options, part) in [
            ("--dtype f8", "bf16"),
            ("--python p", "--vs"),
            ("--ftp p", "--vs"),
            ("--vs tensorflow", "torch"),
            ("--out f --no-rows", "--no-rows"),
            ("--quick --method adamw", "--method"),
            ("--quick --vs torch", "--vs"),
            ("--scaling --model minilm", "--model"),
            ("--time-limit 0", "--time-limit"),
            ("--quick --time-limit 9", "--time-limit"),
        ] {
            let error = parse(options).unwrap_err().to_string();
            assert!(error.contains(part), "{options}: {error}");
        }
        for (options, part) in [
            ("--rounds 0", "--rounds"),
            ("--quick --backend cuda", "--quick"),
            ("--threads 0", "--threads"),
            ("--model tiny --out f", "--out"),
            ("--backend emulated --model vit-b-16", "tiny"),
            ("--backend emulated --out f", "--out"),
            ("--backend emulated --vs torch", "--vs"),
            ("--backend emulated --scaling", "--scaling"),
            ("--dtype bf16 --vs candle", "--vs candle"),
        ] {
            let error = parse(options).unwrap().check().unwrap_err().to_string();
            assert!(error.contains(part), "{options}: {error}");
        }
    }

    #[test]
    fn what_means_nothing_leaves_no_rows() {
        let file = |options: &str| parse(options).unwrap().results_file("cpu").unwrap();
        assert!(file("").is_some());
        for options in ["--no-rows", "--model tiny", "--backend emulated", "--quick"] {
            assert_eq!(file(options), None, "{options}");
        }
    }
}
