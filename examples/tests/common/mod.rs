//! What the tests of several examples need.

#![allow(dead_code, reason = "no test needs all of it")]

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::Path;

use candle_core::{Device, Tensor};
use candle_nn::VarMap;
use serde_json::{Value, json};
use tpgm_examples::study::Outcome;
use tpgm_examples::timing::StepTimes;

/// Every part is in the text.
pub(crate) fn has(text: &str, parts: &[&str]) {
    parts.iter().for_each(|part| assert!(text.contains(part), "{part}: {text}"));
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
pub(crate) fn tokenizer(path: &Path, words: &[&str], [start, end]: [Option<&str>; 2]) {
    let vocabulary: BTreeMap<_, _> = words.iter().enumerate().map(|(id, word)| (*word, id)).collect();
    let piece = |token: &str| json!({"SpecialToken": {"id": token, "type_id": 0}});
    let text = |id: &str| json!({"Sequence": {"id": id, "type_id": 0}});
    let around = |texts: Vec<Value>| {
        start
            .iter()
            .map(|token| piece(token))
            .chain(texts)
            .chain(end.iter().map(|token| piece(token)))
            .collect::<Vec<_>>()
    };
    let special = |token: &&str| {
        ((*token).to_owned(), json!({"id": token, "ids": [vocabulary[token]], "tokens": [token]}))
    };
    let specials: serde_json::Map<_, _> = [start, end].iter().flatten().map(special).collect();
    let content = json!({
        "version": "1.0", "added_tokens": [], "normalizer": {"type": "Lowercase"}, "decoder": null,
        "truncation": null, "padding": null, "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": {"type": "TemplateProcessing", "special_tokens": specials,
            "single": around(vec![text("A")]), "pair": around(vec![text("A"), text("B")])},
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "[UNK]"},
    });
    fs::write(path, content.to_string()).unwrap();
}
