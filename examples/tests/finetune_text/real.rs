//! Files as people have them.

use std::fs;
use std::path::Path;

use clap::Parser;
use tpgm_examples::progress::Progress;
use tpgm_examples::stop::Stop;

use crate::cli::{Args, run};
use crate::common::{has, results};

/// A file or folder of those, whose outcome is known.
fn real(name: &str) -> String {
    format!("{}/tests/real_files/text/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// Runs the command line and returns what it has printed. Options override earlier ones, or are added to them.
fn command(out: &Path, options: &[&str]) -> (anyhow::Result<()>, String) {
    let (model, train, test) = (real("bert"), real("train.csv"), format!("id={}", real("test.csv")));
    let args = ["finetune_text", "--model", &model, "--train", &train, "--jobs", "1", "--epochs", "1"];
    let more = ["--max-length", "16", "--methods", "fine-tuning", "--out", out.to_str().unwrap()];
    let tests = if options.contains(&"--test") { &[][..] } else { &["--test", &test][..] };
    let args = Args::try_parse_from(args.iter().chain(&more).chain(tests).chain(options)).unwrap();
    let progress = Progress::hidden();
    (run(&args, &progress, &Stop::never()), progress.lines())
}

fn fails(out: &Path, options: &[&str]) -> String {
    format!("{:#}", command(out, options).0.unwrap_err())
}

#[test]
fn a_run_says_what_became_of_the_checkpoint_and_of_rows() {
    let out = tempfile::tempdir().unwrap();
    let (result, lines) = command(out.path(), &["--train", &real("open_quote_600.csv")]);
    result.unwrap();
    has(
        &lines,
        &[
            "from ",
            "model.safetensors",
            "loaded ",
            "open_quote_600.csv:302: the quote",
            "1 samples were passed over",
        ],
    );
    has(
        &fails(out.path(), &["--train", &real("open_quote_600_quoted.csv"), "--strict"]),
        &["quoted.csv:302: the quote"],
    );
}

#[test]
fn a_run_is_not_resumed_with_other_data_or_another_model() {
    let out = tempfile::tempdir().unwrap();
    let train = out.path().join("train.csv");
    let train = train.to_str().unwrap();
    fs::copy(real("train_big.csv"), train).unwrap();
    let out = out.path().join("out");
    let resume = ["--train", train, "--resume"];
    command(&out, &resume[..2]).0.unwrap();
    let before = results(&out);
    // A finished run is shown again.
    command(&out, &resume).0.unwrap();
    assert!(results(&out) == before);

    for other in ["train_small.csv", "train.csv"] {
        fs::copy(real(other), train).unwrap();
        has(
            &fails(&out, &resume),
            &[
                "begun with other options or other data",
                "training texts: 3371 bytes",
                "when it was begun",
                "now",
            ],
        );
    }
    fs::copy(real("train_big.csv"), train).unwrap();
    let test = format!("id={}", real("train_small.csv"));
    has(
        &fails(&out, &[&resume[..], &["--test", &test]].concat()),
        &["test texts 1, id: 347 bytes", "tests: "],
    );
    has(&fails(&out, &[&resume[..], &["--epochs", "2"]].concat()), &["epochs: 1 when it was begun, 2 now"]);

    let model = out.with_file_name("model");
    fs::create_dir_all(&model).unwrap();
    for file in ["config.json", "tokenizer.json", "model.safetensors"] {
        fs::copy(Path::new(&real("bert")).join(file), model.join(file)).unwrap();
    }
    let options = [&resume[..], &["--model", model.to_str().unwrap()]].concat();
    command(&out, &[&options[..2], &options[3..]].concat()).0.unwrap();
    command(&out, &options).0.unwrap();
    let weights = model.join("model.safetensors");
    let mut bytes = fs::read(&weights).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&weights, bytes).unwrap();
    has(&fails(&out, &options), &["files, model.safetensors: 5104 bytes, checksum"]);
}

#[test]
fn a_tokenizer_of_another_model_is_named() {
    let out = tempfile::tempdir().unwrap();
    let model = real("tok_too_big");
    let (result, lines) = command(out.path(), &["--model", &model]);
    let parts =
        ["token 7 (`mail`)", "tok_too_big/tokenizer.json", "tok_too_big/model.safetensors", "knows 7 tokens"];
    has(&format!("{:#}", result.unwrap_err()), &[&parts[..], &["train.csv:"]].concat());
    has(&lines, &parts);
    // Texts without these tokens can be used.
    let train = out.path().join("train.csv");
    fs::write(&train, "label,text\n".to_owned() + &"Graphics,draw paint\nGame,jump shoot\n".repeat(20))
        .unwrap();
    let train = train.to_str().unwrap();
    let (result, lines) =
        command(&out.path().join("out"), &["--model", &model, "--train", train, "--test", train]);
    result.unwrap();
    has(&lines, &["a text that has it cannot be used"]);
}

#[test]
fn reasons_are_given_when_no_text_is_left() {
    let out = tempfile::tempdir().unwrap();
    has(
        &fails(out.path(), &["--train", &real("train_array.json")]),
        &["train_array.json: it is a JSON array"],
    );
    has(
        &fails(out.path(), &["--train", &real("train_bool.jsonl")]),
        &[
            "have 0 classes",
            "60 samples were passed over",
            "train_bool.jsonl:1: `label` is false",
            "and 55 more",
        ],
    );
    let marked = out.path().join("lr=1");
    fs::create_dir_all(&marked).unwrap();
    let marked = marked.join("marked.csv");
    fs::write(
        &marked,
        b"\xEF\xBB\xBF".iter().copied().chain(fs::read(real("train.csv")).unwrap()).collect::<Vec<_>>(),
    )
    .unwrap();
    let marked = marked.to_str().unwrap();
    command(&out.path().join("out"), &["--train", marked, "--test", marked]).0.unwrap();
    assert!(fs::read_to_string(out.path().join("out/table.md")).unwrap().contains("| marked (ID) |"));
}
