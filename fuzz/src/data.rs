//! Texts, lists and images.

use std::path::Path;

use tpgm_examples::data::images::{Preprocessing, decode, parse_list};
use tpgm_examples::data::text::{Fields, parse};
use tpgm_examples::data::{ModelTokens, Problems};
use tpgm_examples::{files, folder};

use crate::scratch;

fn texts(name: &str, bytes: &[u8]) {
    let fields = Fields { label: "label".to_owned(), text: "text".to_owned() };
    let problems = Problems::default();
    let rows = parse(Path::new(name), bytes, &fields, &problems);
    // The message is made of what was read.
    let _ = problems.explain(rows).map_err(|error| format!("{error:#}"));
}

pub(crate) fn csv(bytes: &[u8]) {
    texts("train.csv", bytes);
}

pub(crate) fn jsonl(bytes: &[u8]) {
    texts("train.jsonl", bytes);
}

pub(crate) fn list(bytes: &[u8]) {
    let _ = parse_list(Path::new("train.txt"), bytes, Path::new("images"));
}

pub(crate) fn image(bytes: &[u8]) {
    let _ = decode(bytes);
}

pub(crate) fn preprocessing(bytes: &[u8]) {
    let _ = Preprocessing::parse(bytes);
}

pub(crate) fn tokenizer(bytes: &[u8]) {
    let path = scratch::file("tokenizer.json", bytes);
    let Ok(tokens) = ModelTokens::open(&path, Path::new("model"), 7) else { return };
    let _ = tokens.warning();
    // What the library does with a text is its own business.
    let _ = tokens.check(&[0, 6, 7]);
}

/// What a run was begun with, against what it is now.
pub(crate) fn run(bytes: &[u8]) {
    let path = scratch::file("config.json", bytes);
    let Ok(Some(saved)) = files::read_json::<serde_json::Value>(&path) else { return };
    let now = serde_json::json!({"seed": 1, "files": {"training texts": "9 bytes, checksum e3069283"}, "rates": [0.1, 2]});
    let _ = folder::changes(&saved, &now);
    let _ = folder::changes(&now, &saved);
}
