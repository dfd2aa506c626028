//! What the tests of several examples need.

#![allow(dead_code, reason = "no test needs all of it")]

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use candle_core::{Device, Tensor};
use candle_nn::VarMap;
use tpgm_examples::stop::Stop;
use tpgm_examples::study::{Method, Outcome};
use tpgm_examples::timing::StepTimes;

/// Every part is in the text.
pub(crate) fn has(text: &str, parts: &[&str]) {
    parts.iter().for_each(|part| assert!(text.contains(part), "{part}: {text}"));
}

/// The command line is well formed, its help fits a screen, and options that several examples have do the same in each.
pub(crate) fn check_help(mut command: clap::Command) {
    command.clone().debug_assert();
    let screen = tpgm_examples::help::screen(&mut command);
    assert!(screen.lines().count() <= 50, "{} lines:\n{screen}", screen.lines().count());
    assert!(screen.lines().all(|line| line.chars().count() <= 100), "{screen}");
    for option in ["--out", "--resume", "--quick", "--seed", "--help-all"] {
        assert!(screen.contains(&format!("  {option}")), "no {option}:\n{screen}");
    }
}

/// The page of a run is well formed, fetches nothing, and has every part.
pub(crate) fn check_page(out: &Path, parts: &[&str]) {
    let html = fs::read_to_string(out.join("report.html")).unwrap();
    assert_eq!(tpgm_examples::page::complaints(&html), Vec::<String>::new());
    has(&html, parts);
}

/// The outcomes of a study in one of its files.
pub(crate) fn outcomes(file: &Path) -> Vec<Outcome> {
    serde_json::from_slice(&fs::read(file).unwrap()).unwrap()
}

/// The outcomes of a study without times, and the bytes of every model: what must be the same after an interruption.
pub(crate) fn results(out: &Path) -> (String, Vec<(String, Vec<u8>)>) {
    let mut outcomes = outcomes(&out.join("outcomes.json"));
    for outcome in &mut outcomes {
        (outcome.seconds, outcome.times) = (0.0, StepTimes::default());
    }
    let mut models = Vec::new();
    for run in fs::read_dir(out.join("runs")).unwrap() {
        let run = run.unwrap();
        if let Ok(bytes) = fs::read(run.path().join("model.safetensors")) {
            models.push((run.file_name().into_string().unwrap(), bytes));
        }
    }
    models.sort();
    (format!("{outcomes:?}"), models)
}

/// Checks the option `--device` of an example that `run` starts with more options.
pub(crate) fn check_device_option(run: impl Fn(&[&str]) -> anyhow::Result<()>) {
    run(&["--device", "cpu"]).unwrap();
    let error = |device: &str| format!("{:#}", run(&["--device", device]).unwrap_err());
    assert!(error("gpu").contains("no device `gpu`; there are cpu, cuda"), "{}", error("gpu"));
    // With the feature it is the machine that decides.
    if !cfg!(feature = "cuda") {
        let error = error("cuda:1");
        assert!(
            error.contains("--device cuda:1: this program was built without the feature `cuda`"),
            "{error}"
        );
    }
}

/// Checks that a search replaces the grid of a sweep and goes on from its journals. `run` takes the name of a folder in `root` and
/// more options.
pub(crate) fn check_search(root: &Path, run: impl Fn(&str, &[&str], &Stop) -> anyhow::Result<()>) {
    let methods = ["--methods", "linear-probe,lp-ft,wise-ft,ftp", "--rates", "1e-3,1e-4", "--epochs", "1"];
    let options = [&["--full", "--seeds", "2", "--search", "tpe"], &methods[..]].concat();
    run("searched", &options, &Stop::never()).unwrap();
    let read = |out: &str, name| outcomes(&root.join(out).join(name));
    let kept = |out: &str| {
        let scores = |outcome: Outcome| (outcome.setting, outcome.scores.choice, outcome.scores.accuracy);
        [read(out, "outcomes.json"), read(out, "other_seeds.json")].concat().into_iter().map(scores).collect()
    };
    let expected: Vec<_> = kept("searched");
    // As many as the grid has: two rates, three shares of WiSE-FT, two values of k. What WiSE-FT starts from is not LP-FT's.
    let count = |method, seed| {
        expected.iter().filter(|(setting, ..)| (setting.method, setting.seed) == (method, seed)).count()
    };
    let of = [Method::LinearProbe, Method::LpFt, Method::WiseFt, Method::Ftp];
    assert_eq!(of.map(|method| [count(method, 0), count(method, 1)]), [[1, 1], [2, 1], [6, 1], [4, 1]]);
    let rates: Vec<_> = expected.iter().map(|(setting, ..)| setting.lr).filter(|lr| *lr > 0.0).collect();
    assert!(rates.iter().all(|lr| (1e-4..=1e-3).contains(lr)), "{rates:?}");
    assert!(rates.iter().all(|lr| *lr != 1e-4 && *lr != 1e-3), "other settings than the grid's: {rates:?}");

    run("stopped", &options, &Stop::after(20)).unwrap();
    let journal = fs::read_to_string(root.join("stopped/runs/search/FTP.jsonl")).unwrap();
    assert!((2..5).contains(&journal.lines().count()), "{journal}");
    let again = [&options[..], &["--resume"]].concat();
    run("stopped", &again, &Stop::never()).unwrap();
    assert_eq!(kept("stopped"), expected);
    let error = |options: &[&str]| format!("{:#}", run("stopped", options, &Stop::never()).unwrap_err());
    let grid = [&["--full", "--seeds", "2", "--resume"], &methods[..]].concat();
    has(&error(&grid), &["search: {\"search\":\"tpe\"", "when it was begun, none now"]);
    has(&error(&["--full", "--trials", "3"]), &["--trials: a grid has a fixed number of settings"]);
    has(&error(&["--search", "tpe"]), &["--full"]);
}

/// Saves what a model has asked for, with reproducible values, its names behind a prefix, and some tensors more.
pub(crate) fn save(map: &VarMap, path: &Path, prefix: &str, more: HashMap<String, Tensor>) {
    let value = |(name, var): (&String, &candle_core::Var)| {
        let wave = Tensor::arange(0f32, var.elem_count() as f32, &Device::Cpu).unwrap();
        let wave = (wave.affine(0.37, name.len() as f64).unwrap().sin().unwrap() * 0.3).unwrap();
        let factors = ["norm", "Norm", "bn", "downsample.1", "ln_"];
        let is_factor = factors.iter().any(|part| name.contains(part)) && name.ends_with("weight");
        let base = if is_factor || name.ends_with("running_var") { 1.0 } else { 0.0 };
        (format!("{prefix}{name}"), (wave + base).unwrap().reshape(var.shape()).unwrap())
    };
    let tensors: HashMap<_, _> = map.data().lock().unwrap().iter().map(value).chain(more).collect();
    candle_core::safetensors::save(&tensors, path).unwrap();
}

/// Writes a `tokenizer.json` that knows some words; their ids are their positions. A text gets the special tokens around it.
pub(crate) fn tokenizer(path: &Path, words: &[&str], around: [Option<&str>; 2]) {
    fs::write(path, tpgm_examples::quick::tokenizer(words, around)).unwrap();
}
