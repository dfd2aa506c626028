//! Readers of files that come from anywhere, as functions of bytes.
//!
//! A target hands bytes to one reader of this workspace, as the file that somebody downloaded, together with what usually lies
//! beside it. Whatever the bytes are, the reader must come back, with a value or with an error: no panic, no abort, no memory
//! out of proportion. `targets.json` has the list, with the files to start from; `cargo xtask fuzz` runs the targets under
//! libFuzzer, and the tests run every seed once.

mod checkpoints;
mod configs;
mod data;
mod scratch;

/// Hands bytes to a reader.
pub type Run = fn(&[u8]);

/// The targets by the names that `targets.json` gives them.
pub const TARGETS: &[(&str, Run)] = &[
    ("safetensors", checkpoints::safetensors),
    ("index", checkpoints::index),
    ("pytorch", checkpoints::pytorch),
    ("adapter", checkpoints::adapter),
    ("checkpoint", checkpoints::checkpoint),
    ("telemetry", checkpoints::telemetry),
    ("config", configs::models),
    ("csv", data::csv),
    ("jsonl", data::jsonl),
    ("list", data::list),
    ("image", data::image),
    ("preprocessing", data::preprocessing),
    ("tokenizer", data::tokenizer),
    ("run", data::run),
];

/// The target of this name.
pub fn target(name: &str) -> Option<Run> {
    TARGETS.iter().find(|(known, _)| *known == name).map(|(_, run)| *run)
}
