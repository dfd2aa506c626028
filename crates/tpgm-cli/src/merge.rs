//! `tpgm merge`.

use std::path::PathBuf;

use serde::Serialize;
use tpgm_core::{DType, FixedRadius};
use tpgm_files::weight_space::{DistanceOptions, MergePlan, MergeReport, merge_files_with};

use crate::args::{Inputs, Merge, Output};
use crate::distances::measure;
use crate::failure::Failure;
use crate::output::{self, Shown};
use crate::progress::Progress;
use crate::report::{After, Report};

/// What a soup without an anchor says.
#[derive(Serialize)]
struct Json<'a> {
    models: Vec<Shown<'a>>,
    out: Shown<'a>,
    merge: &'a MergeReport,
}

/// Merges, and prints what became of the distances.
pub(crate) fn run(method: &Merge) -> Result<(), Failure> {
    let (inputs, anchor, output, plan) = match method {
        Merge::Wise { inputs, anchor, output, share } => {
            (inputs, Some(anchor), output, MergePlan::wise(*share))
        }
        Merge::FixedRadius { inputs, anchor, output, radius, norm } => {
            let radius = FixedRadius { radius: *radius, norm: (*norm).into() };
            (inputs, Some(anchor), output, MergePlan::project(radius))
        }
        Merge::ModelStock { inputs, anchor, output } => {
            (inputs, Some(anchor), output, MergePlan::model_stock())
        }
        Merge::Soup { inputs, anchor, output } => {
            (inputs, anchor.as_ref(), output, MergePlan::uniform_soup())
        }
    };
    let plan = MergePlan {
        copy: output.copy.clone(),
        drop: output.drop.clone(),
        rename: inputs.rename.clone(),
        dtype: output.dtype.map(DType::from),
        ..plan
    };
    if let Some(anchor) = anchor {
        output::refuse_input(&output.out, anchor, "the anchor")?;
    }
    for model in &inputs.models {
        output::refuse_input(&output.out, model, "a model")?;
    }
    let Some(anchor) = anchor else { return without_anchor(inputs, output, &plan) };
    let leave_out = [&output.copy[..], &output.drop].concat();
    let options = DistanceOptions { leave_out, rename: inputs.rename.clone(), rename_first_only: false };
    // Without an anchor a soup is a mean of the models alone.
    let merged_anchor = (!matches!(method, Merge::Soup { .. })).then_some(anchor);
    // Before long passes.
    plan.validate(merged_anchor.map(PathBuf::as_path), &inputs.models)?;
    let before =
        inputs.models.iter().map(|model| measure(anchor, model, &options)).collect::<Result<_, _>>()?;
    let merged = merge(inputs, output, &plan, merged_anchor)?;
    // The output has the new names.
    let options = DistanceOptions { rename_first_only: true, ..options };
    let distances = measure(anchor, &output.out, &options)?;
    let after = After { out: &output.out, distances, merged, method: plan.method };
    Report { anchor, models: &inputs.models, before, after: Some(after) }.show(inputs)
}

fn without_anchor(inputs: &Inputs, output: &Output, plan: &MergePlan) -> Result<(), Failure> {
    if inputs.report.is_some() {
        return Err(Failure::usage("--report is about distances from an anchor: give --anchor too"));
    }
    let merged = merge(inputs, output, plan, None)?;
    if inputs.json {
        let models = inputs.models.iter().map(|model| Shown(model)).collect();
        return output::print_json(&Json { models, out: Shown(&output.out), merge: &merged });
    }
    output::print(&format!("{merged}\n"))
}

fn merge(
    inputs: &Inputs,
    output: &Output,
    plan: &MergePlan,
    anchor: Option<&PathBuf>,
) -> Result<MergeReport, Failure> {
    let mut progress = Progress::new("merging");
    let anchor = anchor.map(PathBuf::as_path);
    Ok(merge_files_with(plan, anchor, &inputs.models, &output.out, |pass| progress.at(pass))?)
}
