//! The command line, and the order of things.

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use clap::{Parser, Subcommand, ValueEnum};
use tpgm_candle::core::{DType, FixedRadius, Norm};
use tpgm_candle::weight_space::{
    DistanceOptions, Distances, FilePass, MergeMethod, MergePlan, MergeReport, Rename, distances_with,
    merge_files_with,
};
use tpgm_examples::files;
use tpgm_examples::progress::Progress;

use crate::report::{After, Report};

/// Measures how far fine-tuned checkpoints are from their anchor, and brings them back.
///
/// Checkpoints are safetensors files, PyTorch files (.bin, .pth), the `*.index.json` of shards, or folders with one of these.
/// They are worked on tensor by tensor, so they may be larger than memory.
#[derive(Debug, Clone, Parser)]
#[command(name = "project_checkpoints", version)]
pub(crate) struct Args {
    #[command(subcommand)]
    method: Method,
}

#[derive(Debug, Clone, Subcommand)]
enum Method {
    /// Only measure
    Distances {
        #[command(flatten)]
        inputs: Inputs,
        /// Tensors that are not measured, such as a new head of another shape: a name, or a pattern with `*` and `?`. May be
        /// repeated
        #[arg(long, value_name = "PATTERN")]
        new: Vec<String>,
    },
    /// Interpolate between the anchor and one model (WiSE-FT)
    Wise {
        #[command(flatten)]
        inputs: Inputs,
        #[command(flatten)]
        output: Output,
        /// Share of the fine-tuned model: 0 is the anchor, 1 the model
        #[arg(long, default_value_t = 0.5)]
        share: f64,
    },
    /// Pull one model back to a distance from the anchor
    FixedRadius {
        #[command(flatten)]
        inputs: Inputs,
        #[command(flatten)]
        output: Output,
        /// Largest distance that is left, in units of the norm
        #[arg(long, default_value_t = FixedRadius::default().radius)]
        radius: f64,
        /// How distances are measured
        #[arg(long, value_enum, default_value = "mars")]
        norm: NormName,
    },
    /// Average two or more models and pull the mean towards the anchor, as far as their angles say (Model Stock)
    ModelStock {
        #[command(flatten)]
        inputs: Inputs,
        #[command(flatten)]
        output: Output,
    },
    /// Average any number of models; the anchor is only measured from
    Soup {
        #[command(flatten)]
        inputs: Inputs,
        #[command(flatten)]
        output: Output,
    },
}

#[derive(Debug, Clone, clap::Args)]
struct Inputs {
    /// Fine-tuned checkpoints; the first one says which tensors there are
    #[arg(required = true, value_name = "MODEL")]
    models: Vec<PathBuf>,
    /// The checkpoint that fine-tuning started from
    #[arg(long)]
    anchor: PathBuf,
    /// Other names for tensors, in all checkpoints: `bert.*=*` takes a prefix off, `*.gamma=*.weight` changes an ending. May
    /// be repeated; rules are applied in the order given, and all other options go by the new names
    #[arg(long, value_name = "FROM=TO")]
    rename: Vec<Rename>,
    /// Folder for the table (distances.csv, distances.md) and the plot (distances.svg)
    #[arg(long, value_name = "DIR")]
    report: Option<PathBuf>,
}

#[derive(Debug, Clone, clap::Args)]
struct Output {
    /// The checkpoint to write; appears when it is complete
    #[arg(long)]
    out: PathBuf,
    /// Tensors to take from the first model as they are, for example a new head: a name, or a pattern with `*` and `?`.
    /// May be repeated. Counters, positions and integers that all checkpoints share are taken so anyway
    #[arg(long, value_name = "PATTERN")]
    copy: Vec<String>,
    /// Tensors to leave out, for example a head that only the anchor has: a name, or a pattern. May be repeated
    #[arg(long, value_name = "PATTERN")]
    drop: Vec<String>,
    /// Element type of what is merged; the anchor's (of a soup the first model's) if it is not given
    #[arg(long, value_enum)]
    dtype: Option<TypeName>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum TypeName {
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
enum NormName {
    /// The L1 norm of each row: every row is limited on its own
    Mars,
    /// The L2 norm of the tensor
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

/// Does what the command line asks for.
///
/// # Errors
///
/// Files that cannot be read or written, tensors that do not fit together, options out of range. What was at `--out` is
/// untouched then, unless only the report could not be written.
pub(crate) fn run(args: &Args, progress: &Progress) -> Result<()> {
    let (inputs, plan) = args.method.plan();
    let leave_out = match (&args.method, &plan) {
        (Method::Distances { new, .. }, _) => new.clone(),
        (_, Some((_, output))) => [&output.copy[..], &output.drop].concat(),
        _ => Vec::new(),
    };
    let options = DistanceOptions { leave_out, rename: inputs.rename.clone() };
    let measure = |path: &Path| -> Result<Distances> {
        Ok(watched(progress, "measuring", |watch| distances_with(&inputs.anchor, path, &options, watch))?)
    };
    let before = inputs.models.iter().map(|path| measure(path)).collect::<Result<_>>()?;
    let mut report = Report { models: &inputs.models, before, after: None };
    if let Some((plan, output)) = plan {
        let merged = merge(inputs, &plan, output, progress)?;
        report.after = Some(After { distances: measure(&output.out)?, merged, method: plan.method });
    }
    let table = report.table();
    progress.line(table.text());
    report.notes().into_iter().for_each(|line| progress.line(line));
    progress.line(report.summary());
    if let Some(folder) = &inputs.report {
        files::write(&folder.join("distances.csv"), table.csv())?;
        files::write(&folder.join("distances.md"), table.markdown())?;
        files::write(&folder.join("distances.svg"), report.plot()?)?;
    }
    Ok(())
}

fn merge(inputs: &Inputs, plan: &MergePlan, output: &Output, progress: &Progress) -> Result<MergeReport> {
    let same = |path: &Path| {
        path.canonicalize().is_ok_and(|path| output.out.canonicalize().is_ok_and(|out| out == path))
    };
    ensure!(!same(&inputs.anchor), "--out {} is the anchor: it would be lost", output.out.display());
    // Without an anchor a soup is a mean of the models alone.
    let is_soup = plan.method == MergeMethod::UniformSoup;
    let anchor = (!is_soup).then_some(inputs.anchor.as_path());
    Ok(watched(progress, "merging", |watch| {
        merge_files_with(plan, anchor, &inputs.models, &output.out, watch)
    })?)
}

impl Method {
    fn plan(&self) -> (&Inputs, Option<(MergePlan, &Output)>) {
        let (inputs, plan, output) = match self {
            Method::Distances { inputs, .. } => return (inputs, None),
            Method::Wise { inputs, output, share } => (inputs, MergePlan::wise(*share), output),
            Method::FixedRadius { inputs, output, radius, norm } => {
                (inputs, MergePlan::project(FixedRadius { radius: *radius, norm: (*norm).into() }), output)
            }
            Method::ModelStock { inputs, output } => (inputs, MergePlan::model_stock(), output),
            Method::Soup { inputs, output } => (inputs, MergePlan::uniform_soup(), output),
        };
        let plan = MergePlan {
            copy: output.copy.clone(),
            drop: output.drop.clone(),
            rename: inputs.rename.clone(),
            dtype: output.dtype.map(DType::from),
            ..plan
        };
        (inputs, Some((plan, output)))
    }
}

/// Runs a pass over a checkpoint with a bar that shows its tensors.
fn watched<R>(progress: &Progress, title: &str, pass: impl FnOnce(&mut dyn FnMut(FilePass<'_>)) -> R) -> R {
    let bar = progress.bar(title, 0);
    let result = pass(&mut |at| {
        bar.set_length(at.of as u64);
        bar.set_position(at.done as u64);
        bar.set_message(at.tensor.to_owned());
    });
    bar.finish_and_clear();
    result
}
