//! The decoder example through its command line. Models are tiny and runs short: nothing here is about how well they speak.

#![allow(clippy::unwrap_used, reason = "helpers of tests, too")]

// The modules of the example, as its main file has them: an example is not a library that a test could use.
#[path = "../examples/finetune_lora/cli.rs"]
mod cli;
mod common;
#[path = "../examples/finetune_lora/language.rs"]
mod language;
#[path = "../examples/finetune_lora/page.rs"]
mod page;
#[path = "../examples/finetune_lora/sample.rs"]
mod sample;
#[path = "../examples/finetune_lora/text.rs"]
mod text;
#[path = "../examples/finetune_lora/tiny.rs"]
mod tiny;
#[path = "../examples/finetune_lora/train.rs"]
mod train;

use std::fs;
use std::path::Path;

use anyhow::Result;
use candle_core::{DType, Device, Tensor};
use clap::{CommandFactory, Parser};
use tpgm_candle::Params;
use tpgm_candle::lora::LoraConfig;
use tpgm_candle::models::llama::{Llama, LlamaConfig};
use tpgm_examples::files;
use tpgm_examples::progress::Progress;
use tpgm_examples::stop::Stop;

use crate::cli::{Args, Outcome, run};
use crate::sample::{Sampling, continued, perplexity};
use crate::text::{Windows, split};

/// Runs the command line in a folder; `options` come last.
fn command(out: &Path, options: &[&str], stop: &Stop) -> Result<()> {
    let args = ["finetune_lora", "--out", out.to_str().unwrap()];
    run(&Args::try_parse_from(args.iter().chain(options))?, &Progress::hidden(), stop)
}

/// A short run without a model.
const TINY: [&str; 14] = [
    "--tiny",
    "--pretrain-steps",
    "3",
    "--steps",
    "12",
    "--max-length",
    "24",
    "--batch",
    "4",
    "--held-out-share",
    "0.01",
    "--sample-tokens",
    "3",
    "--lr=0.01",
];

fn outcome(out: &Path) -> Outcome {
    files::read_json(&out.join("outcome.json")).unwrap().unwrap()
}

fn error(options: &[&str]) -> String {
    let folder = tempfile::tempdir().unwrap();
    format!("{:#}", command(folder.path(), options, &Stop::never()).unwrap_err())
}

#[test]
fn the_command_line_is_well_formed() {
    common::check_help(Args::command());
}

#[test]
fn a_run_without_a_model_leaves_an_adapter_that_predicts_better() {
    let folder = tempfile::tempdir().unwrap();
    command(folder.path(), &TINY, &Stop::never()).unwrap();
    let outcome = outcome(folder.path());
    let names: Vec<_> = outcome.perplexities.iter().map(|(name, ..)| name.as_str()).collect();
    assert_eq!(names, ["held out", "text of pre-training, held out"]);
    let (_, before, after) = outcome.perplexities[0];
    assert!(after < 0.8 * before && before < 300.0, "{before} to {after}");
    assert_eq!(outcome.times.steps(), 12);

    let adapter = folder.path().join("adapter");
    let factors =
        candle_core::safetensors::load(adapter.join("adapter_model.safetensors"), &Device::Cpu).unwrap();
    assert_eq!(factors.len(), 2 * 7 * 2);
    let name = "base_model.model.model.layers.1.self_attn.v_proj.lora_B.weight";
    assert_eq!(factors[name].dims(), [32, 8]);
    let config = LoraConfig::from_adapter(&adapter).unwrap();
    assert_eq!((config.rank, config.alpha, config.targets.len()), (8, 16.0, 7));
    assert!(fs::read_to_string(folder.path().join("table.md")).unwrap().contains("| held out |"));
    let parts =
        ["id=\"factors-at-the-end\"", "v_proj.lora_B.weight</td>", "<td>training.steps</td><td>12</td>"];
    common::check_page(folder.path(), &parts);
}

#[test]
fn half_precision_predicts_better_too() {
    for dtype in ["bf16", "f16"] {
        let folder = tempfile::tempdir().unwrap();
        command(folder.path(), &[&TINY[..], &["--dtype", dtype]].concat(), &Stop::never()).unwrap();
        let (_, before, after) = outcome(folder.path()).perplexities[0];
        assert!(after < 0.8 * before && before < 300.0, "{dtype}: {before} to {after}");
    }
}

#[test]
fn a_quick_run_needs_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    command(folder.path(), &["--quick", "--pretrain-steps", "2", "--held-out-share", "0.01"], &Stop::never())
        .unwrap();
    assert_eq!(outcome(folder.path()).times.steps(), 20);
}

#[test]
fn an_interrupted_run_goes_on_to_the_same_bits() {
    let folder = tempfile::tempdir().unwrap();
    let (whole, cut) = (folder.path().join("whole"), folder.path().join("cut"));
    let options = |more: &[&'static str]| [&TINY, more].concat();
    command(&whole, &options(&["--save-every", "4"]), &Stop::never()).unwrap();
    command(&cut, &options(&["--save-every", "4"]), &Stop::after(3)).unwrap();
    assert!(!cut.join("adapter").exists());
    command(&cut, &options(&["--save-every", "4", "--resume"]), &Stop::after(4)).unwrap();
    command(&cut, &options(&["--save-every", "4", "--resume"]), &Stop::never()).unwrap();
    let bytes = |out: &Path| fs::read(out.join("adapter/adapter_model.safetensors")).unwrap();
    assert!(bytes(&whole) == bytes(&cut));
    assert_eq!(outcome(&whole).perplexities, outcome(&cut).perplexities);
    assert_eq!(outcome(&cut).times.steps(), 12);
    assert!(whole.join("checkpoints/step-00000012").exists());
}

#[test]
fn resuming_needs_a_run_of_the_same_options() {
    let folder = tempfile::tempdir().unwrap();
    let error = |options: &[&str]| {
        format!("{:#}", command(folder.path(), &[&TINY, options].concat(), &Stop::never()).unwrap_err())
    };
    assert!(error(&["--resume"]).contains("leave out --resume"));
    command(folder.path(), &TINY, &Stop::after(1)).unwrap();
    assert!(error(&["--resume", "--rank", "2"]).contains("was begun with other options"));
}

#[test]
fn a_run_is_not_resumed_with_another_text_or_model() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    model(&folder.path().join("m"), 4);
    fs::write(at("m/tokenizer.json"), TOKENIZER).unwrap();
    let (m, text, out) = (at("m"), at("m/text"), folder.path().join("out"));
    let options =
        ["--model", &m, "--train", &text, "--steps", "6", "--max-length", "16", "--sample-tokens", "0"];
    let resume = || command(&out, &[&options[..], &["--resume"]].concat(), &Stop::never());
    let refused = |part: &str| {
        let error = format!("{:#}", resume().unwrap_err());
        assert!(error.contains("other options or other data") && error.contains(part), "{part}: {error}");
    };
    command(&out, &options, &Stop::after(3)).unwrap();
    let whole = fs::read_to_string(&text).unwrap();
    for other in [&whole[..whole.len() / 4], &whole.repeat(2), &whole.replace('c', "a")] {
        fs::write(&text, other).unwrap();
        refused("files, text: 1200 bytes");
    }
    fs::write(&text, format!("\u{feff}{whole}")).unwrap();
    refused("files, text: 1200 bytes");
    fs::write(&text, &whole).unwrap();
    resume().unwrap();
    let weights = at("m/model.safetensors");
    let mut bytes = fs::read(&weights).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&weights, bytes).unwrap();
    refused("files, model.safetensors: ");
}

#[test]
fn options_that_make_no_sense_are_named() {
    assert!(error(&["--tiny", "--held-out-share", "1.5"]).contains("--held-out-share is 1.5"));
    assert!(error(&["--tiny", "--steps", "0"]).contains("--steps"));
    assert!(error(&["--tiny", "--batch", "0"]).contains("--batch"));
    assert!(error(&["--tiny", "--max-length", "1"]).contains("--max-length is 1"));
    assert!(error(&["--tiny", "--train", "no-such-file"]).contains("no-such-file"));
    assert!(error(&[]).contains("--model"));
    assert!(error(&["--model", "m"]).contains("--train"));
    let tiny = |more: &[&'static str]| error(&[&TINY, more].concat());
    assert!(tiny(&["--targets", "query"]).contains("query"));
    assert!(tiny(&["--max-length", "400"]).contains("--max-length is 400, but the model takes up to 256"));
    assert!(tiny(&["--lr", "1e30", "--constraint", "none"]).contains("at learning rate"));
}

/// Words as tokens.
const TOKENIZER: &str = r#"{"version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
    "normalizer": null, "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null, "decoder": null,
    "model": {"type": "WordLevel", "vocab": {"?": 0, "a": 1, "b": 2, "c": 3}, "unk_token": "?"}}"#;

/// A model that knows `vocabulary` tokens, and a text.
fn model(folder: &Path, vocabulary: usize) {
    let config = LlamaConfig { vocab_size: vocabulary, ..tiny::config() };
    let params = Params::new(&Device::Cpu).head("*");
    Llama::new(&config, params.var_builder()).unwrap();
    fs::create_dir_all(folder).unwrap();
    files::write_json(&folder.join("config.json"), &config).unwrap();
    let weights = params.tensors().into_iter().collect();
    candle_core::safetensors::save(&weights, folder.join("model.safetensors")).unwrap();
    fs::write(folder.join("text"), "a b c ".repeat(200)).unwrap();
}

#[test]
fn a_model_with_a_tokenizer_is_adapted() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    model(&folder.path().join("m"), 4);
    fs::write(at("other"), "c b a ".repeat(30)).unwrap();
    let (m, text, other) = (at("m"), at("m/text"), at("other"));
    let options = [
        "--model",
        &m,
        "--train",
        &text,
        "--test",
        &other,
        "--steps",
        "15",
        "--max-length",
        "16",
        "--lr=0.01",
    ];
    let run = || command(&folder.path().join("out"), &options, &Stop::never());
    let missing = format!("{:#}", run().unwrap_err());
    assert!(missing.contains("tokenizer.json"), "{missing}");
    fs::write(at("m/tokenizer.json"), TOKENIZER).unwrap();
    run().unwrap();
    let outcome = outcome(&folder.path().join("out"));
    let (_, _, held_out) = outcome.perplexities[0];
    let (name, _, after) = &outcome.perplexities[1];
    // What follows is certain, and the other order is not: four equally likely tokens are a perplexity of 4.
    assert!(held_out < 1.5 && *after > 4.0 && name.ends_with("other"), "{outcome:?}");

    model(&folder.path().join("m"), 3);
    let unknown = format!("{:#}", run().unwrap_err());
    assert!(
        ["token 3 (`c`)", "m/tokenizer.json", "none of", "text to train on", "the model knows 3 tokens"]
            .iter()
            .all(|part| unknown.contains(part)),
        "{unknown}"
    );
}

#[test]
fn windows_predict_every_token_but_the_first_once() {
    for count in 2..40u32 {
        let windows = Windows::new("t", (0..count).map(|i| i + 1).collect(), 7).unwrap();
        let batch = windows.batch(&(0..windows.len()).collect::<Vec<_>>()).unwrap();
        let (ids, counted) = (batch.ids.to_vec2::<u32>().unwrap(), batch.counted.to_vec2::<u8>().unwrap());
        let mut predicted = Vec::new();
        for (ids, counted) in ids.iter().zip(&counted) {
            predicted.extend(
                ids.iter().zip(counted).skip(1).filter(|(_, counts)| **counts == 1).map(|(id, _)| *id),
            );
        }
        assert_eq!(predicted, (2..=count).collect::<Vec<_>>(), "{count}");
        assert_eq!(batch.predicted, predicted.len());
    }
    assert!(Windows::new("short", vec![1], 7).err().unwrap().to_string().contains("short"));
}

#[test]
fn the_held_out_part_is_the_end_of_the_text() {
    let text = "one two\nthree four\nfive ßix\n".repeat(10);
    for share in [0.05, 0.1, 0.5, 0.97] {
        let (train, held_out) = split(&text, share);
        assert_eq!(format!("{train}{held_out}"), text);
        let got = held_out.len() as f64 / text.len() as f64;
        assert!(got >= share && got < share + 0.1, "{share} {got}");
        assert!(train.is_empty() || train.ends_with(['\n', ' ']), "{share}");
    }
}

/// From the logits of each window: `exp` of the mean of `ln(sum exp) - logit`, over windows of different lengths.
#[test]
fn perplexity_is_over_tokens_and_a_sample_without_temperature_takes_the_likeliest() {
    let params = Params::new(&Device::Cpu).head("*");
    let config = LlamaConfig { vocab_size: 16, ..tiny::config() };
    let model = Llama::new(&config, params.var_builder()).unwrap();
    let tokens: Vec<u32> = (0..18).map(|i| i * i % 16).collect();
    let logits = |tokens: &[u32]| {
        let ids = Tensor::new(tokens, &Device::Cpu).unwrap().unsqueeze(0).unwrap();
        model
            .forward(&ids, false)
            .unwrap()
            .squeeze(0)
            .unwrap()
            .to_dtype(DType::F64)
            .unwrap()
            .to_vec2::<f64>()
            .unwrap()
    };
    let mut losses = Vec::new();
    for window in [&tokens[0..8], &tokens[7..15], &tokens[14..18]] {
        for (logits, next) in logits(window).iter().zip(&window[1..]) {
            losses.push(logits.iter().map(|x| x.exp()).sum::<f64>().ln() - logits[*next as usize]);
        }
    }
    let expected = (losses.iter().sum::<f64>() / 17.0).exp();
    let windows = Windows::new("t", tokens, 8).unwrap();
    let got = perplexity(&model, &windows, 2).unwrap();
    assert!((got / expected - 1.0).abs() < 1e-5, "{got} {expected}");

    let sampling = Sampling { tokens: 2, temperature: 0.0, seed: 0, length: 3 };
    let said = continued(&model, &Device::Cpu, &[1, 2, 3, 4], sampling).unwrap();
    let likeliest = |tokens: &[u32]| {
        let last = logits(tokens).pop().unwrap();
        (0..16u32).max_by(|a, b| last[*a as usize].total_cmp(&last[*b as usize])).unwrap()
    };
    let fifth = likeliest(&[2, 3, 4]);
    assert_eq!(said, [1, 2, 3, 4, fifth, likeliest(&[3, 4, fifth])]);
    let drawn = |seed| {
        continued(&model, &Device::Cpu, &[1], Sampling { tokens: 12, temperature: 1.0, seed, length: 8 })
            .unwrap()
    };
    assert_eq!(drawn(1), drawn(1));
    assert_ne!(drawn(1), drawn(2));
}

#[test]
fn the_device_is_an_option() {
    let folder = tempfile::tempdir().unwrap();
    common::check_device_option(|device| {
        command(folder.path(), &[&TINY[..], &["--steps", "1"], device].concat(), &Stop::never())
    });
}
