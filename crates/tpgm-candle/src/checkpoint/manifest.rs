//! `state.json` and `checksums.txt`.
//!
//! Checksums have a file of their own because `state.json` needs one too: a changed digit in it still parses.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::CheckpointProblem;
use super::error::{Error, Result};
use super::exact::{Bits, inexact, restore};
use super::write::Sum;
use crate::files::io;

pub(super) const WEIGHTS: &str = "weights.safetensors";
pub(super) const STATE: &str = "state.safetensors";
pub(super) const MANIFEST: &str = "state.json";
pub(super) const SUMS: &str = "checksums.txt";

const FORMAT: &str = "tpgm-candle checkpoint";
/// Raised when older programs could no longer read what newer ones write. Version 2 has state of several ranks; a checkpoint
/// of one is written as version 1.
const VERSION: u64 = 2;

/// `state.json`.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Manifest {
    format: String,
    version: u64,
    /// Version of the program, for the curious.
    written_by: String,
    pub(super) step: u64,
    /// Names of the sections in `state.safetensors`: an empty one leaves no other trace.
    pub(super) sections: Vec<String>,
    #[serde(flatten)]
    values: Values,
    /// Values of the ranks from 1 on, if several ranks saved.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    ranks: Vec<Values>,
}

/// Values of one rank.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Values {
    /// Named values: an object.
    values: Value,
    /// Bits of numbers in `values` that JSON would not keep.
    #[serde(default, skip_serializing_if = "Bits::is_empty")]
    exact: Bits,
}

impl Values {
    pub(super) fn new(values: Map<String, Value>) -> Self {
        let values = Value::Object(values);
        let exact = inexact(&values);
        Self { values, exact }
    }
}

/// Name of the file with the state that `rank` of `ranks` saved.
pub(super) fn state_file(rank: usize, ranks: usize) -> String {
    match ranks {
        1 => STATE.to_owned(),
        ranks => format!("state-{rank:05}-of-{ranks:05}.safetensors"),
    }
}

/// What every version of `state.json` has.
#[derive(Deserialize)]
struct Preamble {
    format: String,
    version: u64,
}

impl Manifest {
    /// `ranks` has the values of the ranks from 1 on.
    pub(super) fn new(step: u64, sections: Vec<String>, values: Values, ranks: Vec<Values>) -> Self {
        let written_by = concat!("tpgm-candle ", env!("CARGO_PKG_VERSION")).to_owned();
        let version = if ranks.is_empty() { 1 } else { VERSION };
        Self { format: FORMAT.to_owned(), version, written_by, step, sections, values, ranks }
    }

    /// How many ranks saved.
    pub(super) fn ranks(&self) -> usize {
        1 + self.ranks.len()
    }

    pub(super) fn value(&self, rank: usize, name: &str) -> Option<&Value> {
        let values = if rank == 0 { Some(&self.values) } else { self.ranks.get(rank - 1) };
        values.and_then(|values| values.values.get(name))
    }

    pub(super) fn value_names(&self) -> impl Iterator<Item = &str> {
        self.values.values.as_object().into_iter().flat_map(|values| values.keys().map(String::as_str))
    }

    pub(super) fn to_json(&self) -> Vec<u8> {
        let mut json = serde_json::to_vec_pretty(self).expect("it holds numbers, strings and JSON values");
        json.push(b'\n');
        json
    }

    /// Reads `state.json`. Says first whether this is a checkpoint that this version can read at all.
    pub(super) fn read(path: &Path) -> Result<Self> {
        let problem = |problem| Error::Checkpoint { path: path.to_owned(), problem };
        let malformed = |reason: String| problem(CheckpointProblem::Malformed { reason });
        let no_json = |error: serde_json::Error| malformed(error.to_string());
        let json = fs::read(path).map_err(io(path))?;
        let any: Value = serde_json::from_slice(&json).map_err(no_json)?;
        match serde_json::from_value::<Preamble>(any) {
            Ok(Preamble { format, version }) if format == FORMAT => {
                if version > VERSION {
                    return Err(problem(CheckpointProblem::Version { got: version, supported: VERSION }));
                }
            }
            _ => return Err(problem(CheckpointProblem::Foreign)),
        }
        let mut manifest: Self = serde_json::from_slice(&json).map_err(no_json)?;
        for of_rank in std::iter::once(&mut manifest.values).chain(&mut manifest.ranks) {
            restore(&mut of_rank.values, &of_rank.exact)
                .map_err(|path| malformed(format!("`exact` has no number for {path}")))?;
        }
        Ok(manifest)
    }
}

/// The text of `checksums.txt`: CRC-32C in hexadecimal, bytes, name.
pub(super) fn sums_to_text(sums: &[(String, Sum)]) -> String {
    let mut text = String::new();
    for (name, sum) in sums {
        writeln!(text, "{:08x} {} {name}", sum.crc, sum.bytes).expect("a string takes all that is written");
    }
    text
}

/// Reads `checksums.txt`.
pub(super) fn read_sums(path: &Path) -> Result<BTreeMap<String, Sum>> {
    let malformed = |reason: String| Error::Checkpoint {
        path: path.to_owned(),
        problem: CheckpointProblem::Malformed { reason },
    };
    let text = fs::read(path).map_err(io(path))?;
    let text = String::from_utf8(text).map_err(|error| malformed(error.to_string()))?;
    let parse = |line: &str| {
        let mut parts = line.splitn(3, ' ');
        let crc = u32::from_str_radix(parts.next()?, 16).ok()?;
        let bytes = parts.next()?.parse().ok()?;
        Some((parts.next()?.to_owned(), Sum { bytes, crc }))
    };
    text.lines()
        .enumerate()
        .map(|(i, line)| parse(line).ok_or_else(|| malformed(format!("line {}", i + 1))))
        .collect()
}
