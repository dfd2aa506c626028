//! `tpgm distances`.

use std::path::{Path, PathBuf};

use tpgm_files::weight_space::{self, DistanceOptions, distances_with};

use crate::args;
use crate::failure::Failure;
use crate::progress::Progress;
use crate::report::Report;

/// The distance of a checkpoint from the anchor.
pub(crate) fn measure(
    anchor: &Path,
    model: &Path,
    options: &DistanceOptions,
) -> Result<weight_space::Distances, Failure> {
    let mut progress = Progress::new("measuring");
    Ok(distances_with(anchor, model, options, |pass| progress.at(pass))?)
}

/// Prints distances.
pub(crate) fn run(args: &args::Distances) -> Result<(), Failure> {
    let args::Distances { inputs, anchor, new } = args;
    let options =
        DistanceOptions { leave_out: new.clone(), rename: inputs.rename.clone(), rename_first_only: false };
    let all: Vec<&Path> = std::iter::once(anchor).chain(&inputs.models).map(PathBuf::as_path).collect();
    options.validate(&all)?;
    let before =
        inputs.models.iter().map(|model| measure(anchor, model, &options)).collect::<Result<_, _>>()?;
    Report { anchor, models: &inputs.models, before, after: None }.show(inputs)
}
