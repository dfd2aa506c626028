//! The golden cases of the wider family: losses, teachers, pulls, changes of gradients, merges, prompts, searches and
//! adaptation, as published code computed them.
//!
//! `cargo test` runs the committed cases. `cargo xtask parity DIR` runs this program on any folder that is laid out like
//! them: `family --dir DIR [--filter TEXT] [--verbose]`. A method that nothing here computes is named, and counts neither as
//! passed nor as failed. A subject is a function from a case to its outputs: see `SUBJECTS`.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program that reports")]

mod adapt;
mod case;
mod gradients;
mod losses;
mod merges;
mod prompts;
mod pulls;
#[cfg(feature = "search")]
mod search;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use candle_core::Result as CandleResult;
use serde_json::Value;

use case::{Case, Limit, Outputs};

type Subject = fn(&Case) -> CandleResult<Outputs>;

/// The limits that the cases were published with.
const USUAL: Limit = Limit { f64: 1e-10, f32: 1e-3, of_largest: false };
/// Directions without variance are divided by 1e-6.
const CONCORDANT: Limit = Limit { f64: 1e-10, f32: 5e-3, of_largest: true };
/// Several steps of the same.
const LOOP: Limit = Limit { f64: 1e-8, ..CONCORDANT };

/// What computes the cases of a method, and how far it may be off.
const SUBJECTS: &[(&str, Limit, Subject)] = &[
    ("autoft", USUAL, losses::autoft),
    ("carot", USUAL, losses::carot),
    ("carot_teacher", USUAL, adapt::carot_teacher),
    ("cross_entropy", USUAL, losses::cross_entropy),
    ("dawin_coefficients", USUAL, merges::dawin_coefficients),
    ("dawin_mixture", USUAL, merges::dawin_mixture),
    ("demosaicking", USUAL, losses::demosaicking),
    ("drm_inference", USUAL, merges::drm_inference),
    ("fstta_fast", LOOP, adapt::fstta_fast),
    ("fstta_gradient", CONCORDANT, gradients::fstta_gradient),
    ("fstta_slow", CONCORDANT, adapt::fstta_slow),
    ("gift", USUAL, losses::gift),
    ("gradient_pair", USUAL, gradients::gradient_pair),
    ("graph_prompt", USUAL, prompts::graph_prompt),
    ("l2_sp", USUAL, pulls::l2_sp),
    ("lipsum", USUAL, losses::lipsum),
    ("model_stock", USUAL, merges::model_stock),
    ("prompt_allocation", USUAL, prompts::prompt_allocation),
    ("selekt", USUAL, merges::selekt),
    #[cfg(feature = "search")]
    ("tpe", USUAL, search::tpe),
    ("visual_prompt", USUAL, prompts::visual_prompt),
];

struct Options {
    dirs: Vec<PathBuf>,
    filter: String,
    verbose: bool,
}

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let mut options = Options { dirs: Vec::new(), filter: String::new(), verbose: false };
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--dir" => options.dirs.extend(arguments.next().map(PathBuf::from)),
            "--filter" => options.filter = arguments.next().unwrap_or_default(),
            "--verbose" => options.verbose = true,
            // What the test harness takes: here is nothing to list, and a name selects other programs' tests.
            "--list" => return ExitCode::SUCCESS,
            other if !other.starts_with('-') && !"family".contains(other) => return ExitCode::SUCCESS,
            _ => {}
        }
    }
    if options.dirs.is_empty() {
        options.dirs.push(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/family/cases"));
    }
    match run(&options) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:?}");
            ExitCode::FAILURE
        }
    }
}

/// Prints a line a case and `N passed, N failed` at the end. True if none failed.
fn run(options: &Options) -> Result<bool> {
    let (mut passed, mut failed) = (0, 0);
    let mut without: BTreeMap<String, usize> = BTreeMap::new();
    for dir in &options.dirs {
        for (name, json, files) in cases(dir)? {
            if !name.contains(&options.filter) {
                continue;
            }
            let description = json_of(&dir.join(&json))?;
            let method = description["method"].as_str().with_context(|| format!("{name} has no `method`"))?;
            let Some((_, limit, subject)) = SUBJECTS.iter().find(|(subject, ..)| *subject == method) else {
                *without.entry(method.to_owned()).or_default() += 1;
                continue;
            };
            let mut problems = Vec::new();
            for (kind, file) in &files {
                let limit_of = if kind == "f64" { limit.f64 } else { limit.f32 };
                let result = Case::load(&description, &dir.join(file), limit_of, limit.of_largest)
                    .and_then(|case| Ok(case.check(&subject(&case)?)?));
                match result {
                    Ok(found) => {
                        problems.extend(found.into_iter().map(|problem| format!("{kind}: {problem}")))
                    }
                    Err(error) => problems.push(format!("{kind}: {error:#}")),
                }
                if options.verbose {
                    println!("       {name} {kind}");
                }
            }
            if problems.is_empty() && !files.is_empty() {
                passed += 1;
                println!("ok     {name}");
            } else {
                failed += 1;
                println!("FAILED {name}");
                problems.iter().for_each(|problem| println!("       {problem}"));
            }
        }
    }
    for (method, count) in &without {
        println!("no subject here: {method} ({count} cases, neither passed nor failed)");
    }
    println!("{passed} passed, {failed} failed");
    Ok(failed == 0)
}

fn json_of(path: &Path) -> Result<Value> {
    let text = std::fs::read_to_string(path).with_context(|| format!("`{}`", path.display()))?;
    serde_json::from_str(&text).with_context(|| format!("`{}`", path.display()))
}

/// Name, description and files by element type.
type Listed = (String, PathBuf, BTreeMap<String, PathBuf>);

/// The cases of a folder: those of its index, or all that lie in it.
fn cases(dir: &Path) -> Result<Vec<Listed>> {
    let index = dir.join("index.json");
    if index.is_file() {
        let index = json_of(&index)?;
        let entries = index["cases"].as_array().context("`index.json` has no list `cases`")?;
        let text = |value: &Value| value.as_str().map(str::to_owned);
        return entries
            .iter()
            .map(|entry| {
                let name = text(&entry["case"]).context("a case of `index.json` has no name")?;
                let json = text(&entry["json"]).with_context(|| format!("{name} names no JSON file"))?;
                let files = entry["files"].as_object().with_context(|| format!("{name} names no files"))?;
                let files =
                    files.iter().filter_map(|(kind, file)| Some((kind.clone(), PathBuf::from(text(file)?))));
                Ok((name, json.into(), files.collect()))
            })
            .collect();
    }
    let mut listed = Vec::new();
    let sorted = |dir: &Path| -> Result<Vec<PathBuf>> {
        let entries = std::fs::read_dir(dir).with_context(|| format!("`{}`", dir.display()))?;
        let mut paths = entries.map(|entry| Ok(entry?.path())).collect::<std::io::Result<Vec<_>>>()?;
        paths.sort();
        Ok(paths)
    };
    for folder in sorted(dir)?.into_iter().filter(|path| path.is_dir()) {
        for json in sorted(&folder)?.into_iter().filter(|path| path.extension().is_some_and(|e| e == "json"))
        {
            let relative = json.strip_prefix(dir)?.to_owned();
            let name = relative.with_extension("").to_string_lossy().into_owned();
            let files = ["f64", "f32"].into_iter().filter_map(|kind| {
                let file = relative.with_extension(format!("{kind}.safetensors"));
                dir.join(&file).is_file().then_some((kind.to_owned(), file))
            });
            listed.push((name, relative.clone(), files.collect()));
        }
    }
    Ok(listed)
}
