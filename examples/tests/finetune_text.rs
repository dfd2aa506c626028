//! `finetune_text` from files to tables, with a tiny random model. Nothing here is about accuracy.

#![allow(clippy::unwrap_used, reason = "helpers of tests, too")]

// The modules of the example, as its main file has them: an example is not a library that a test could use.
#[path = "../examples/finetune_text/cli.rs"]
mod cli;
mod common;
#[path = "../examples/finetune_text/pooling.rs"]
mod pooling;
#[path = "finetune_text/real.rs"]
mod real;
#[path = "../examples/finetune_text/task.rs"]
mod task;
#[path = "../examples/finetune_text/texts.rs"]
mod texts;

use std::collections::HashMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::Result;
use candle_core::{DType, Device, Tensor};
use clap::{CommandFactory, Parser};
use serde_json::json;
use tpgm_candle::models::bert::{Bert, BertConfig};
use tpgm_candle::nn::DropoutRng;
use tpgm_examples::progress::Progress;
use tpgm_examples::stop::Stop;
use tpgm_examples::study::{Method, Outcome};

use crate::cli::{Args, run};
use crate::common::{check_page, outcomes, results, save, tokenizer};

const WORDS: [&str; 6] = ["draw", "paint", "shoot", "jump", "mail", "chat"];

/// A model of one block with a word for a token, in the layout of sentence-transformers, and with a tensor that is not used.
fn model(folder: &Path) {
    let config = json!({"vocab_size": 9, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
        "intermediate_size": 12, "max_position_embeddings": 16, "type_vocab_size": 2});
    fs::create_dir_all(folder.join("1_Pooling")).unwrap();
    fs::write(folder.join("config.json"), config.to_string()).unwrap();
    fs::write(folder.join(pooling::FILE), json!({"pooling_mode_mean_tokens": true}).to_string()).unwrap();
    let words = [&["[PAD]", "[UNK]", "[CLS]"], &WORDS[..]].concat();
    tokenizer(&folder.join("tokenizer.json"), &words, [Some("[CLS]"), None]);
    let map = candle_nn::VarMap::new();
    let vb = candle_nn::VarBuilder::from_varmap(&map, DType::F32, &Device::Cpu);
    let config = BertConfig::from_file(folder.join("config.json")).unwrap();
    Bert::new(&config, &DropoutRng::new(0), vb).unwrap();
    let pooler = Tensor::ones(8, DType::F32, &Device::Cpu).unwrap();
    let unused = HashMap::from([("pooler.dense.bias".to_owned(), pooler)]);
    save(&map, &folder.join("model.safetensors"), "", unused);
}

/// Texts of three classes, each with two words of its own.
fn texts(path: &Path, count: usize) {
    let mut content = "label,text\n".to_owned();
    for number in 0..count {
        let class = number % 3;
        let words: Vec<_> = (0..2 + number % 4).map(|word| WORDS[2 * class + (number + word) % 2]).collect();
        writeln!(content, "{},\"{}\"", ["Graphics", "Game", "Network"][class], words.join(" ")).unwrap();
    }
    fs::write(path, content).unwrap();
}

/// Runs the command line on a folder with a model and texts, with some options more.
fn command(folder: &Path, out: &str, options: &[&str], stop: &Stop) -> Result<()> {
    let path = |name: &str| folder.join(name).to_str().unwrap().to_owned();
    let (id, ood) = (format!("id={}", path("id.csv")), path("short.csv"));
    let files = [path("model"), path("train.csv"), path("val.csv"), path(out)];
    let args = [
        "finetune_text",
        "--model",
        &files[0],
        "--train",
        &files[1],
        "--held-out",
        &files[2],
        "--out",
        &files[3],
    ];
    let more =
        ["--test", &id, "--test", &ood, "--jobs", "1", "--epochs", "2", "--batch", "8", "--max-length", "16"];
    let args = Args::try_parse_from(args.iter().chain(&more).chain(options))?;
    run(&args, &Progress::hidden(), stop)
}

fn study() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    model(&folder.path().join("model"));
    for (name, count) in [("train.csv", 24), ("val.csv", 12), ("id.csv", 9), ("short.csv", 6)] {
        texts(&folder.path().join(name), count);
    }
    folder
}

#[test]
fn a_quick_run_needs_no_files() {
    let folder = tempfile::tempdir().unwrap();
    let made = tpgm_examples::quick::texts(&folder.path().join("made")).unwrap();
    let out = folder.path().join("out");
    let given = ["--quick", "--jobs", "1", "--epochs", "1", "--out", out.to_str().unwrap()];
    let args = ["finetune_text"].into_iter().chain(made.iter().map(String::as_str)).chain(given);
    run(&Args::try_parse_from(args).unwrap(), &Progress::hidden(), &Stop::never()).unwrap();
    check_page(&out, &["rare", "<td>epochs</td><td>1</td>"]);
}

#[test]
fn the_help_fits_a_screen() {
    common::check_help(Args::command());
}

#[test]
fn nine_methods_leave_tables_plots_and_models_and_an_interrupted_run_the_same() {
    let folder = study();
    command(folder.path(), "whole", &[], &Stop::never()).unwrap();
    let out = folder.path().join("whole");
    for name in ["table.md", "macro_f1.md"] {
        let table = fs::read_to_string(out.join(name)).unwrap();
        assert_eq!(table.lines().count(), 2 + 9, "{table}");
        for word in ["id (ID)", "short", "OOD mean", "LP-FT", "WiSE-FT", "DiGraP"] {
            assert!(table.contains(word), "{word}: {table}");
        }
    }
    assert!(fs::read_to_string(out.join("times.md")).unwrap().contains("| TPGM | "));
    for file in ["frontier.svg", "radius_tpgm.svg", "ratio_ftp.svg", "config.json"] {
        assert!(out.join(file).exists(), "{file}");
    }
    let parts =
        ["id=\"accuracy\"", "<td>max_length</td><td>16</td>", "Radii of TPGM at the end", "Training loss"];
    check_page(&out, &parts);
    check_page(&out, &["<td>encoder.layer.0.output.dense</td>", "id=\"ftp-radius-over-the-steps\""]);
    // All of the checkpoint is in a model, also what the encoder does not use.
    let tuned =
        candle_core::safetensors::load(out.join("runs/FTP_lr0.0001_1_seed0/model.safetensors"), &Device::Cpu);
    let tuned = tuned.unwrap();
    assert!(tuned.contains_key("pooler.dense.bias") && tuned["classifier.weight"].dims() == [3, 8]);

    command(folder.path(), "cut", &[], &Stop::after(5)).unwrap();
    assert!(!folder.path().join("cut/table.md").exists());
    for _ in 0..4 {
        command(folder.path(), "cut", &["--resume"], &Stop::after(11)).unwrap();
    }
    command(folder.path(), "cut", &["--resume"], &Stop::never()).unwrap();
    let ((outcomes, models), (expected, expected_models)) =
        (results(&folder.path().join("cut")), results(&out));
    assert_eq!(outcomes, expected);
    assert_eq!(models.len(), 8);
    assert!(models == expected_models);
}

#[test]
fn half_precision_trains_and_is_saved() {
    let folder = study();
    for (dtype, expected) in [("bf16", DType::BF16), ("f16", DType::F16)] {
        let options = ["--dtype", dtype, "--methods", "ftp", "--epochs", "1"];
        command(folder.path(), dtype, &options, &Stop::never()).unwrap();
        let out = folder.path().join(dtype);
        let tuned = out.join("runs/FTP_lr0.0001_1_seed0/model.safetensors");
        let tuned = candle_core::safetensors::load(tuned, &Device::Cpu).unwrap();
        let weight = &tuned["classifier.weight"];
        assert_eq!(weight.dtype(), expected);
        let norm = weight.to_dtype(DType::F32).unwrap().sqr().unwrap().sum_all().unwrap();
        assert!(norm.to_scalar::<f32>().unwrap() > 0.0, "the head was trained");
        check_page(&out, &[&format!("<td>dtype</td><td>{dtype}</td>")]);
    }
    let refused = command(folder.path(), "refused", &["--dtype", "f16", "--methods", "tpgm"], &Stop::never());
    let text = format!("{:#}", refused.unwrap_err());
    assert!(text.contains("TPGM does not train in f16") && text.contains("--dtype bf16 or f32"), "{text}");
}

#[test]
fn a_sweep_repeats_the_chosen_settings_with_other_seeds() {
    let folder = study();
    let options =
        ["--full", "--seeds", "2", "--methods", "ftp,wise-ft", "--rates", "1e-3,1e-4", "--epochs", "1"];
    command(folder.path(), "out", &options, &Stop::never()).unwrap();
    let out = folder.path().join("out");
    let table = fs::read_to_string(out.join("table.md")).unwrap();
    assert_eq!(table.lines().count(), 2 + 2, "{table}");
    assert!(table.contains(" ± "), "{table}");
    let read = |name| outcomes(&out.join(name));
    let seeds = |outcomes: Vec<Outcome>, method| {
        outcomes
            .iter()
            .filter(|outcome| outcome.setting.method == method)
            .map(|o| o.setting.seed)
            .collect::<Vec<_>>()
    };
    // Two rates x two values of k, two rates x three shares; then one each.
    assert_eq!(seeds(read("outcomes.json"), Method::Ftp), [0; 4]);
    assert_eq!(seeds(read("outcomes.json"), Method::WiseFt), [0; 6]);
    assert_eq!(seeds(read("other_seeds.json"), Method::Ftp), [1]);
    assert_eq!(seeds(read("other_seeds.json"), Method::WiseFt), [1]);
}

#[test]
fn a_search_replaces_the_grid() {
    let folder = study();
    common::check_search(folder.path(), |out, options, stop| command(folder.path(), out, options, stop));
}

#[test]
fn held_out_texts_come_from_the_training_file_if_there_are_no_others() {
    let folder = study();
    let path = |name: &str| folder.path().join(name);
    let encoder = tpgm_examples::data::text::TextEncoder::open(&path("model"), 16, 9).unwrap();
    let fields = tpgm_examples::data::text::Fields { label: "label".to_owned(), text: "text".to_owned() };
    let tests = [("id".to_owned(), path("id.csv"))];
    texts(&path("train.csv"), 60);
    let train = path("train.csv");
    let files = texts::Files { train: &train, held_out: None, tests: &tests, fields };
    let texts = texts::Texts::read(&files, &encoder, &tpgm_examples::data::Problems::default()).unwrap();
    assert_eq!([texts.train.len(), texts.radii.len(), texts.choice.len()], [48, 6, 6]);
    assert_eq!(texts.classes, ["Game", "Graphics", "Network"]);
}

#[test]
fn texts_are_padded_with_the_models_own_token() {
    let folder = study();
    let open = || tpgm_examples::data::text::TextEncoder::open(&folder.path().join("model"), 16, 9).unwrap();
    assert!(open().padded_with(8).is_ok());
    let error = format!("{:#}", open().padded_with(9).err().unwrap());
    assert!(error.starts_with("the token that texts are padded with") && error.contains("9"), "{error}");
}

#[test]
fn what_cannot_be_used_is_named() {
    let folder = study();
    let fails = |options: &[&str]| {
        format!("{:#}", command(folder.path(), "bad", options, &Stop::never()).unwrap_err())
    };
    let has = |error: String, part: &str| assert!(error.contains(part), "{part}: {error}");
    has(fails(&["--text-column", "body"]), "train.csv has no column `body`, only label, text");
    has(fails(&["--test", "nowhere.csv"]), "nowhere.csv");
    has(fails(&["--max-length", "99"]), "the model takes up to 16 tokens");
    has(fails(&["--epochs", "0"]), "--epochs");
    has(fails(&["--resume"]), "leave out --resume");
    has(fails(&["--methods", "sgd"]), "sgd");
    has(fails(&["--rates", "1e25", "--methods", "fine-tuning"]), "fine-tuning: step 1 at learning rate");

    // A row without a class, and one whose class is not in the training texts.
    let path = folder.path().join("id.csv");
    let rows = fs::read_to_string(&path).unwrap() + ",draw\nMusic,paint\n";
    fs::write(&path, rows).unwrap();
    has(fails(&["--strict"]), "id.csv:11: no `label`");
    command(folder.path(), "good", &["--methods", "linear-probe"], &Stop::never()).unwrap();

    fs::write(folder.path().join("model").join(pooling::FILE), "{}").unwrap();
    has(fails(&[]), "only the mean over tokens or the first token");
    fs::remove_file(folder.path().join("model/tokenizer.json")).unwrap();
    has(fails(&[]), "has no tokenizer.json");
}

#[test]
fn the_device_is_an_option() {
    let folder = study();
    common::check_device_option(|device| {
        let options = [&["--methods", "fine-tuning", "--epochs", "1"], device].concat();
        command(folder.path(), "out", &options, &Stop::never())
    });
}
