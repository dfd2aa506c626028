//! The command line.

use std::path::PathBuf;

use clap::{Parser, Subcommand, ValueEnum};
use tpgm_core::{DType, FixedRadius, Norm};
use tpgm_files::weight_space::Rename;

/// What the program ends with, at the end of every help.
const EXIT_CODES: &str = "\
Exit codes: 0 done; 2 an option or its value is wrong; 3 a file cannot be read or written;
4 the checkpoints do not fit together, or hold what cannot be measured or merged";

/// Checkpoint files: what is inside, how far they are apart, merged, converted.
///
/// A checkpoint is a safetensors file, a PyTorch file (.bin, .pth, .pth.tar), the `*.index.json` of shards, or a folder with
/// safetensors or .bin files. Files are worked on tensor by tensor, so they may be larger than memory.
#[derive(Debug, Clone, Parser)]
#[command(name = "tpgm", version, after_help = EXIT_CODES)]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Clone, Subcommand)]
pub(crate) enum Command {
    /// List the tensors of a checkpoint, say which model it is of, and what of it that model would not use
    #[command(after_help = EXIT_CODES)]
    Inspect(Inspect),
    /// Measure how far fine-tuned checkpoints are from the one they started from, tensor by tensor
    #[command(after_help = EXIT_CODES)]
    Distances(Distances),
    /// Merge checkpoints: interpolate, project, average
    #[command(after_help = EXIT_CODES)]
    Merge {
        #[command(subcommand)]
        method: Merge,
    },
    /// Write a checkpoint as one safetensors file, under other names or in another type if asked
    #[command(after_help = EXIT_CODES)]
    Convert(Convert),
    /// Print the completions of a shell: bash, elvish, fish, powershell, zsh
    Completions {
        /// The shell
        #[arg(value_enum)]
        shell: clap_complete::Shell,
    },
}

#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Inspect {
    /// The checkpoint
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
    #[command(flatten)]
    pub(crate) open: Open,
    /// Print JSON instead of a table
    #[arg(long)]
    pub(crate) json: bool,
}

/// How one checkpoint is opened.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Open {
    /// Where a PyTorch file keeps the weights, if there are several: `state_dict_ema`; dots lead deeper, `state.model`
    #[arg(long)]
    pub(crate) key: Option<String>,
    /// Other names for tensors: `bert.*=*` takes a prefix off, `*.gamma=*.weight` changes an ending. May be repeated; rules are
    /// applied in the order given
    #[arg(long, value_name = "FROM=TO")]
    pub(crate) rename: Vec<Rename>,
}

#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Distances {
    #[command(flatten)]
    pub(crate) inputs: Inputs,
    /// The checkpoint that fine-tuning started from
    #[arg(long)]
    pub(crate) anchor: PathBuf,
    /// Tensors that are not measured, such as a new head of another shape: a name, or a pattern with `*` and `?`. May be
    /// repeated
    #[arg(long, value_name = "PATTERN")]
    pub(crate) new: Vec<String>,
}

#[derive(Debug, Clone, Subcommand)]
pub(crate) enum Merge {
    /// Interpolate between the anchor and one model (WiSE-FT)
    #[command(after_help = EXIT_CODES)]
    Wise {
        #[command(flatten)]
        inputs: Inputs,
        /// The checkpoint that fine-tuning started from
        #[arg(long)]
        anchor: PathBuf,
        /// Share of the fine-tuned model: 0 is the anchor, 1 the model
        #[arg(long, default_value_t = 0.5)]
        share: f64,
        #[command(flatten)]
        output: Output,
    },
    /// Pull one model back to a distance from the anchor
    #[command(after_help = EXIT_CODES)]
    FixedRadius {
        #[command(flatten)]
        inputs: Inputs,
        /// The checkpoint that fine-tuning started from
        #[arg(long)]
        anchor: PathBuf,
        /// Largest distance that is left, in units of the norm
        #[arg(long, default_value_t = FixedRadius::default().radius)]
        radius: f64,
        /// How distances are measured: mars takes the L1 norm of each row, and limits every row on its own; l2 the L2 norm of
        /// the tensor
        #[arg(long, value_enum, default_value = "mars")]
        norm: NormName,
        #[command(flatten)]
        output: Output,
    },
    /// Average two or more models and pull the mean towards the anchor, as far as their angles say (Model Stock)
    #[command(after_help = EXIT_CODES)]
    ModelStock {
        #[command(flatten)]
        inputs: Inputs,
        /// The checkpoint that fine-tuning started from
        #[arg(long)]
        anchor: PathBuf,
        #[command(flatten)]
        output: Output,
    },
    /// Average any number of models
    #[command(after_help = EXIT_CODES)]
    Soup {
        #[command(flatten)]
        inputs: Inputs,
        /// The checkpoint that fine-tuning started from: only to print distances from it
        #[arg(long)]
        anchor: Option<PathBuf>,
        #[command(flatten)]
        output: Output,
    },
}

/// What is measured or merged.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Inputs {
    /// Fine-tuned checkpoints; the first one says which tensors there are
    #[arg(required = true, value_name = "MODEL")]
    pub(crate) models: Vec<PathBuf>,
    /// Other names for tensors, in all checkpoints: `bert.*=*` takes a prefix off, `*.gamma=*.weight` changes an ending. May be
    /// repeated; rules are applied in the order given, and all other options go by the new names
    #[arg(long, value_name = "FROM=TO")]
    pub(crate) rename: Vec<Rename>,
    /// Folder for the table (distances.csv, distances.md) and the plot (distances.svg)
    #[arg(long, value_name = "DIR")]
    pub(crate) report: Option<PathBuf>,
    /// Print JSON instead of a table
    #[arg(long)]
    pub(crate) json: bool,
}

/// What is written.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Output {
    /// The safetensors file to write; appears when it is complete
    #[arg(long)]
    pub(crate) out: PathBuf,
    /// Tensors to take from the first model as they are, for example a new head: a name, or a pattern with `*` and `?`. May be
    /// repeated. Counters, positions and integers that all checkpoints share are taken so anyway
    #[arg(long, value_name = "PATTERN")]
    pub(crate) copy: Vec<String>,
    /// Tensors to leave out, for example a head that only the anchor has: a name, or a pattern. May be repeated
    #[arg(long, value_name = "PATTERN")]
    pub(crate) drop: Vec<String>,
    /// Element type of what is merged; the anchor's (of a soup the first model's) if it is not given
    #[arg(long, value_enum)]
    pub(crate) dtype: Option<TypeName>,
}

#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Convert {
    /// The checkpoint
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
    /// The safetensors file to write; appears when it is complete
    #[arg(long)]
    pub(crate) out: PathBuf,
    #[command(flatten)]
    pub(crate) open: Open,
    /// Tensors to leave out, by their new names: a name, or a pattern with `*` and `?`. May be repeated
    #[arg(long, value_name = "PATTERN")]
    pub(crate) drop: Vec<String>,
    /// Element type of all floating-point tensors; each keeps its own if it is not given
    #[arg(long, value_enum)]
    pub(crate) dtype: Option<TypeName>,
    /// Print JSON instead of a summary
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum TypeName {
    F64,
    F32,
    F16,
    Bf16,
}

impl From<TypeName> for DType {
    fn from(name: TypeName) -> Self {
        match name {
            TypeName::F64 => DType::F64,
            TypeName::F32 => DType::F32,
            TypeName::F16 => DType::F16,
            TypeName::Bf16 => DType::BF16,
        }
    }
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum NormName {
    Mars,
    L2,
}

impl From<NormName> for Norm {
    fn from(name: NormName) -> Self {
        match name {
            NormName::Mars => Norm::Mars,
            NormName::L2 => Norm::L2,
        }
    }
}
