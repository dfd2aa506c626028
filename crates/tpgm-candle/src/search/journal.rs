//! A study on the disk: a line of JSON that says what is searched, then one per trial.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::error::{Error, Result};
use super::{Grid, Record, Space};
use crate::files::io;

/// The first line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Header {
    pub(super) seed: u64,
    pub(super) random: usize,
    pub(super) space: Space,
    /// Instead of a space.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) grid: Option<Grid>,
}

#[derive(Debug)]
pub(super) struct Journal {
    path: PathBuf,
    out: File,
}

/// A journal, the trials that it holds, and what was left out of it.
pub(super) struct Opened {
    pub(super) journal: Journal,
    pub(super) records: Vec<Record>,
    pub(super) dropped: Option<String>,
}

impl Journal {
    /// Opens a journal, or begins one.
    pub(super) fn open(path: &Path, header: &Header) -> Result<Opened> {
        let text = match std::fs::read_to_string(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => String::new(),
            text => text.map_err(io(path))?,
        };
        // A line without its end was being written when the program was stopped.
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        let lines = &text[..whole];
        let json = serde_json::to_string(header).expect("names and numbers become JSON");
        // As the journal has it: serde_json's parser is off by a unit in the last place for many numbers of seventeen digits.
        let written: Header = serde_json::from_str(&json).unwrap_or_else(|_| header.clone());
        let mut records = Vec::new();
        for (line, text) in lines.lines().enumerate() {
            let wrong = |problem: String| Error::Journal { path: path.to_owned(), line: line + 1, problem };
            if line == 0 {
                let found: Header = serde_json::from_str(text)
                    .map_err(|error| wrong(format!("this is no journal of a search: {error}")))?;
                if let Some(problem) = difference(&found, &written) {
                    return Err(wrong(problem));
                }
                continue;
            }
            let mut record: Record = serde_json::from_str(text).map_err(|error| wrong(error.to_string()))?;
            match &header.grid {
                Some(grid) => record.values = of_grid(&record, grid, &records).map_err(wrong)?,
                None => check(&record, &written.space).map_err(wrong)?,
            }
            records.push(record);
        }
        let mut out = OpenOptions::new().create(true).append(true).open(path).map_err(io(path))?;
        let dropped = match text.len() - whole {
            0 => None,
            cut => {
                out.set_len(whole as u64).map_err(io(path))?;
                let line = lines.lines().count() + 1;
                Some(format!(
                    "{}, line {line}: an unfinished line of {cut} bytes was dropped",
                    path.display()
                ))
            }
        };
        if whole == 0 {
            out.write_all(format!("{json}\n").as_bytes()).map_err(io(path))?;
        }
        Ok(Opened { journal: Self { path: path.to_owned(), out }, records, dropped })
    }

    /// Adds a trial, and waits until it is on the disk.
    pub(super) fn add(&mut self, record: &Record) -> Result<()> {
        let name = |name: &String| serde_json::to_string(name).expect("a name becomes JSON");
        let values: Vec<_> =
            record.values.iter().map(|(key, value)| format!("{}:{}", name(key), number(*value))).collect();
        let loss = record.loss.map_or_else(|| "null".to_owned(), number);
        let line =
            format!("{{\"trial\":{},\"values\":{{{}}},\"loss\":{loss}}}\n", record.trial, values.join(","));
        // Written whole, so that a program that is stopped leaves at most one line that is cut.
        self.out.write_all(line.as_bytes()).map_err(io(&self.path))?;
        Ok(self.out.sync_data().map_err(io(&self.path))?)
    }
}

/// A number as JSON that is read as this number: serde_json's parser is off by a unit in the last place for many numbers of
/// seventeen digits.
fn number(value: f64) -> String {
    let shortest = serde_json::to_string(&value).unwrap_or_default();
    match serde_json::from_str::<f64>(&shortest) {
        Ok(read) if read == value => shortest,
        _ => format!("{value:.9e}"),
    }
}

/// What a journal's study has other than this one.
fn difference(found: &Header, header: &Header) -> Option<String> {
    match (&found.grid, &header.grid) {
        (Some(_), None) => return Some("the journal is of a grid, but this study searches".to_owned()),
        (None, Some(_)) => return Some("the journal is of a search, but this study of a grid".to_owned()),
        (old, new) if old != new => {
            return Some(format!("the journal is of another grid, {old:?}, but this study of {new:?}"));
        }
        _ => {}
    }
    let names = |map: &BTreeMap<_, _>| map.keys().cloned().collect::<Vec<String>>();
    let (old, new) = (found.space.ranges(), header.space.ranges());
    if names(old) != names(new) {
        return Some(format!("the journal searches {:?}, but this study {:?}", names(old), names(new)));
    }
    for (name, range) in new {
        if old[name] != *range {
            return Some(format!("the journal has `{name}` in {:?}, but this study in {range:?}", old[name]));
        }
    }
    let options =
        [("seed", found.seed, header.seed), ("random trials", found.random as u64, header.random as u64)];
    let differs = options.into_iter().find(|(_, old, new)| old != new)?;
    Some(format!("the journal has {} = {}, but this study {}", differs.0, differs.1, differs.2))
}

fn check(record: &Record, space: &Space) -> std::result::Result<(), String> {
    for (name, range) in space.ranges() {
        match record.values.get(name) {
            None => return Err(format!("trial {} has no `{name}`", record.trial)),
            Some(value) if !range.contains(*value) => {
                return Err(format!("trial {}: `{name}` is {value}, outside {range:?}", record.trial));
            }
            Some(_) => {}
        }
    }
    match record.values.keys().find(|name| !space.ranges().contains_key(*name)) {
        Some(name) => Err(format!("trial {} has `{name}`, which the space has not", record.trial)),
        None => Ok(()),
    }
}

/// The values of a grid's trial, exactly as the grid has them.
fn of_grid(
    record: &Record,
    grid: &Grid,
    before: &[Record],
) -> std::result::Result<BTreeMap<String, f64>, String> {
    let number = record.trial;
    if number >= grid.len() {
        return Err(format!("there is no trial {number}: the grid has {}", grid.len()));
    }
    if before.iter().any(|other| other.trial == number) {
        return Err(format!("trial {number} is there twice"));
    }
    let values = grid.point(number);
    // The journal has ten digits.
    let same = |(name, value): (&String, &f64)| {
        record.values.get(name).is_some_and(|other| (other - value).abs() <= 1e-9 * value.abs())
    };
    match record.values.len() == values.len() && values.iter().all(same) {
        true => Ok(values),
        false => Err(format!("trial {number} is {:?}, but the grid has {values:?} there", record.values)),
    }
}
