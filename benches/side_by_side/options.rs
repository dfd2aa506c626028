//! The command line.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail, ensure};
use clap::{Parser, ValueEnum};
use tpgm_benches::{Method, Model};
use tpgm_core::DType;

use crate::quick;

/// Where rows go if not told otherwise.
pub(crate) const RESULTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/results");

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
    /// Also measure others, on the same device
    #[arg(long, value_enum)]
    pub(crate) vs: Option<Peer>,
    /// The program with candle's optimizers [default: `cargo xtask bench` builds it from benches/peers/candle]
    #[arg(long, requires = "vs")]
    pub(crate) candle: Option<PathBuf>,
    /// A Python interpreter with PyTorch [default: python3]
    #[arg(long, requires = "vs")]
    python: Option<PathBuf>,
    /// Checkout of the published FTP code (GT-RIPL/FTP)
    #[arg(long, requires = "vs")]
    pub(crate) ftp: Option<PathBuf>,
    /// Checkout of the published TPGM code (PotatoTian/TPGM)
    #[arg(long, requires = "vs")]
    pub(crate) tpgm: Option<PathBuf>,
    /// After the rounds of a method, as many in which each of its parts is timed: the kernels of a GPU, the calls of a
    /// projection update
    #[arg(long)]
    pub(crate) parts: bool,
    /// File to which one JSON line per row is appended [default: benches/results/DEVICE.jsonl]
    #[arg(long)]
    out: Option<PathBuf>,
    /// Measure nothing: write benches/RESULTS.md and its plots from all rows that are there
    #[arg(long)]
    pub(crate) page: bool,
    /// Print the table and write no rows
    #[arg(long, conflicts_with = "out")]
    no_rows: bool,
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
        ensure!(self.threads != Some(0), "--threads must be at least 1");
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
        if let (Some(warning), Some(_)) = (self.warning(), &self.out) {
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

    /// Measured rounds.
    pub(crate) fn rounds(&self) -> usize {
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
        if self.no_rows || self.quick || self.warning().is_some() {
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

fn dtype(name: &str) -> Result<DType, String> {
    DType::ALL
        .into_iter()
        .find(|dtype| dtype.name() == name)
        .ok_or_else(|| format!("no element type `{name}`; known are f64, f32, f16, bf16"))
}

/// Lower case, with one `-` for whatever is neither letter nor digit: `NVIDIA H100 80GB HBM3` is `nvidia-h100-80gb-hbm3`.
fn file_stem(device: &str) -> String {
    let words = device.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
    words.map(str::to_ascii_lowercase).collect::<Vec<_>>().join("-")
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
        let args = parse("--vs torch --ftp a").unwrap();
        assert_eq!((args.python(), args.ftp.clone()), ("python3".into(), Some("a".into())));
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
    fn rows_go_to_the_file_of_the_device() {
        let file = |options: &str, device| parse(options).unwrap().results_file(device).unwrap();
        let name = |path: Option<PathBuf>| path.unwrap().file_name().unwrap().to_owned();
        assert_eq!(name(file("", "cpu")), "cpu.jsonl");
        assert_eq!(name(file("", "NVIDIA H100 80GB HBM3")), "nvidia-h100-80gb-hbm3.jsonl");
        assert_eq!(file("--out rows", "cpu"), Some("rows".into()));
        assert_eq!(file("--no-rows", "cpu"), None);
        assert_eq!(file("--model tiny", "cpu"), None);
        assert_eq!(file("--backend emulated", "emulator"), None);
    }
}
