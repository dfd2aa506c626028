//! Every case of a folder, every way.

use std::collections::BTreeSet;
use std::path::Path;

use super::case::{Case, Index, IndexEntry, field_error, inside, read_json};
use super::compare::Comparer;
use super::error::GoldenError;
use super::evaluate::Evaluator;
use super::file::TensorFile;
use super::model::Param;
use super::report::{CaseReport, Mode, Outcome, Report, RunReport};
use super::subject::{Observed, Subject};
use super::{run_step, run_tpgm, run_wise};
use crate::element::DType;
use crate::params::{Group, ParamSet};

/// Runs the cases of the folder `dir` whose name contains `filter` (all without one) through `subject`.
///
/// A case that cannot be run is reported as failed with the reason, and the others go on.
///
/// # Errors
///
/// [`GoldenError::Io`], [`GoldenError::Json`] or [`GoldenError::Field`] if the index cannot be read, is empty or lists a
/// case twice, or if `filter` selects nothing.
pub fn run_folder(dir: &Path, subject: &dyn Subject, filter: Option<&str>) -> Result<Report, GoldenError> {
    let path = dir.join("index.json");
    let index: Index = read_json(&path)?;
    let mut names = BTreeSet::new();
    if let Some(twice) = index.cases.iter().find(|entry| !names.insert(&entry.case)) {
        let problem = format!("lists `{}` twice", twice.case);
        return Err(field_error(&path, "cases", problem));
    }
    let cases: Vec<CaseReport> = index
        .cases
        .iter()
        .filter(|entry| filter.is_none_or(|filter| entry.case.contains(filter)))
        .map(|entry| match run_case(dir, &path, entry, subject) {
            Ok(runs) => CaseReport { case: entry.case.clone(), error: None, runs },
            Err(error) => CaseReport { case: entry.case.clone(), error: Some(error), runs: Vec::new() },
        })
        .collect();
    if cases.is_empty() {
        let problem = match filter {
            None => "is empty".to_owned(),
            Some(filter) => format!("has {} cases, none with `{filter}` in its name", index.cases.len()),
        };
        return Err(field_error(&path, "cases", problem));
    }
    Ok(Report { subject: subject.name().to_owned(), cases })
}

fn run_case(
    dir: &Path,
    index: &Path,
    entry: &IndexEntry,
    subject: &dyn Subject,
) -> Result<Vec<RunReport>, GoldenError> {
    let json = inside(dir, index, &entry.json)?;
    let case: Case = read_json(&json)?;
    if case.case != entry.case {
        let problem = format!("is `{}`, but the index says `{}`", case.case, entry.case);
        return Err(field_error(&json, "case", problem));
    }
    let mut names = BTreeSet::new();
    if let Some(twice) = case.params.iter().find(|p| !names.insert(&p.name)) {
        return Err(field_error(&json, "params", format!("lists `{}` twice", twice.name)));
    }
    let run: for<'a> fn(&Context<'a>) -> Result<Comparer<'a>, GoldenError> = match case.method.as_str() {
        "tpgm" => run_tpgm::run,
        "ftp_adamp" => |context| run_step::run(context, run_step::Method::FtpAdam),
        "ftp_sgdp" => |context| run_step::run(context, run_step::Method::FtpSgd),
        "adam_spd" => |context| run_step::run(context, run_step::Method::AdamSpd),
        "wise" => run_wise::run,
        other => {
            return Err(field_error(&json, "method", format!("is `{other}`, which is unknown")));
        }
    };
    // An interpolation has no gradients, so there is one way to run it.
    let modes: &[Mode] = if case.model.is_some() && case.method != "wise" {
        &[Mode::Fed, Mode::EndToEnd]
    } else {
        &[Mode::Fed]
    };
    let mut runs = Vec::new();
    for (name, relative) in entry.files.iter().rev() {
        let dtype = match name.as_str() {
            "f64" => DType::F64,
            "f32" => DType::F32,
            other => {
                return Err(field_error(index, "files", format!("has `{other}`, neither f64 nor f32")));
            }
        };
        let path = inside(dir, index, relative)?;
        for &mode in modes {
            let outcome = TensorFile::read(&path, dtype).and_then(|file| {
                let context = Context { case: &case, json: &json, file: &file, subject, mode };
                let comparer = run(&context)?;
                file.expect_all_seen()?;
                Ok(Outcome::Compared {
                    worst: comparer.worst,
                    compared: comparer.compared,
                    hidden: comparer.hidden,
                })
            });
            runs.push(RunReport { dtype, mode, outcome: outcome.unwrap_or_else(Outcome::Broken) });
        }
    }
    Ok(runs)
}

/// What a run of a case works with.
pub(super) struct Context<'a> {
    pub(super) case: &'a Case,
    pub(super) json: &'a Path,
    pub(super) file: &'a TensorFile,
    pub(super) subject: &'a dyn Subject,
    pub(super) mode: Mode,
}

impl<'a> Context<'a> {
    pub(super) fn params(&self) -> &'a [Param] {
        &self.case.params
    }

    /// The parameters as a set of the file's element type. `zero_anchor`: displacements are measured from zero.
    pub(super) fn set(&self, zero_anchor: bool) -> Result<ParamSet, GoldenError> {
        let names = |constrained: bool| -> Vec<&str> {
            let chosen = self.params().iter().filter(|p| p.constrained() == constrained);
            chosen.map(|p| p.name.as_str()).collect()
        };
        let (inside, outside) = (names(true), names(false));
        let mut set = ParamSet::builder();
        for param in self.params() {
            set = set.tensor(&param.name, param.shape.clone(), self.file.dtype);
        }
        if !outside.is_empty() {
            set = set.group(Group::any(outside).excluded());
        }
        if zero_anchor && !inside.is_empty() {
            set = set.group(Group::any(inside).zero_anchor());
        }
        self.subject("the parameter set", set.build())
    }

    /// The model on its batches, end to end; fed runs do not need them.
    pub(super) fn evaluator(&self) -> Result<Option<Evaluator<'a>>, GoldenError> {
        match (&self.case.model, self.mode) {
            (Some(model), Mode::EndToEnd) => Evaluator::new(model, self.case, self.json, self.file).map(Some),
            _ => {
                self.file.skip("x");
                self.file.skip("y");
                Ok(None)
            }
        }
    }

    /// Says which call an error of the subject came from.
    pub(super) fn subject<T>(&self, call: &str, result: crate::error::Result<T>) -> Result<T, GoldenError> {
        result.map_err(|source| GoldenError::Subject {
            path: self.file.path.clone(),
            call: call.to_owned(),
            source,
        })
    }
}

/// What the run itself computed, as an observation.
pub(super) fn value(values: &[f64]) -> Observed {
    Observed::Value(values.to_vec())
}
