//! Outcomes of finished runs as lines of one file: a study goes on from them on another machine, or years later.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{Outcome, Setting};
use crate::fingerprint::Digest;

/// What is recorded: an outcome, which belongs to a setting.
pub trait Recorded: Clone + Serialize + DeserializeOwned {
    /// What was run.
    type Setting: PartialEq;

    /// What was run.
    fn setting(&self) -> &Self::Setting;
}

impl Recorded for Outcome {
    type Setting = Setting;

    fn setting(&self) -> &Setting {
        &self.setting
    }
}

/// The option that names the file.
#[derive(Debug, Clone, clap::Args)]
pub struct RecordArgs {
    /// Outcomes of finished runs, a JSON line each: those of the same study are not run again, new ones are added
    #[arg(long, value_name = "FILE")]
    pub outcomes: Option<PathBuf>,
}

impl RecordArgs {
    /// The records, if they are asked for. `study` is what people call it; `config` is all that an outcome depends on besides
    /// its setting: data, checkpoint, recipe. It should name no paths.
    ///
    /// # Errors
    ///
    /// As [`Records::open`].
    pub fn open<O: Recorded>(&self, study: &str, config: &impl Serialize) -> Result<Option<Records<O>>> {
        self.outcomes.as_ref().map(|path| Records::open(path, study, config)).transpose()
    }

    /// The folder for the journals of a search: beside the records, under the configuration and the seed, or in `runs`.
    pub fn journals<O: Recorded>(&self, records: Option<&Records<O>>, runs: &Path, seed: u64) -> PathBuf {
        match self.outcomes.as_ref().zip(records) {
            Some((path, records)) => path.with_file_name(format!("search_{}_{seed}", records.print())),
            None => runs.join("search"),
        }
    }
}

/// A line of the file.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Line<O> {
    study: String,
    /// Of the configuration.
    print: String,
    #[serde(flatten)]
    outcome: O,
}

/// Outcomes in a file, of any number of studies.
pub struct Records<O = Outcome> {
    path: PathBuf,
    study: String,
    print: String,
    /// Those of this study.
    known: Mutex<Vec<O>>,
}

impl<O: Recorded> Records<O> {
    /// Reads the file, if there is one. A last line without an end, which a killed process leaves, is cut off.
    ///
    /// # Errors
    ///
    /// The file cannot be read, or a line of it is no outcome.
    pub fn open(path: &Path, study: &str, config: &impl Serialize) -> Result<Self> {
        let mut print = Digest::new("bytes");
        print.add(serde_json::to_string(config)?.as_bytes());
        let (study, print) = (study.to_owned(), print.checksum());
        let text = match fs::read_to_string(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            read => read.with_context(|| format!("cannot read {}", path.display()))?,
        };
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        if whole < text.len() {
            fs::write(path, &text[..whole]).with_context(|| format!("cannot write {}", path.display()))?;
        }
        let mut known = Vec::new();
        for (number, line) in text[..whole].lines().enumerate() {
            let line: Line<O> = serde_json::from_str(line)
                .with_context(|| format!("{}:{}: no outcome of a run", path.display(), number + 1))?;
            if line.study == study && line.print == print {
                known.push(line.outcome);
            }
        }
        Ok(Self { path: path.to_owned(), study, print, known: Mutex::new(known) })
    }

    /// Number of outcomes of this study.
    pub fn len(&self) -> usize {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Tells configurations apart: eight hexadecimal digits.
    pub fn print(&self) -> &str {
        &self.print
    }

    /// The outcome of a setting.
    pub fn find(&self, setting: &O::Setting) -> Option<O> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.iter().find(|outcome| outcome.setting() == setting).cloned()
    }

    /// Adds an outcome, unless its setting has one.
    ///
    /// # Errors
    ///
    /// The file cannot be written.
    pub fn add(&self, outcome: &O) -> Result<()> {
        // Held while writing: lines of runs at the same time stay whole.
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.iter().any(|other| other.setting() == outcome.setting()) {
            return Ok(());
        }
        let (study, print) = (self.study.clone(), self.print.clone());
        let line = serde_json::to_string(&Line { study, print, outcome: outcome.clone() })? + "\n";
        let attempt = || {
            self.path.parent().map_or(Ok(()), fs::create_dir_all)?;
            OpenOptions::new().create(true).append(true).open(&self.path)?.write_all(line.as_bytes())
        };
        attempt().with_context(|| format!("cannot write {}", self.path.display()))?;
        known.push(outcome.clone());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::study::{Marks, Method, Scores};
    use crate::timing::StepTimes;

    fn outcome(seed: u64) -> Outcome {
        let setting = Setting { method: Method::Ftp, lr: 3e-4, strength: Some(1.0), seed };
        let right = vec![Marks::new(vec![true, false])];
        let scores = Scores { choice: 0.5, accuracy: vec![0.5], right, ..Scores::default() };
        Outcome { setting, scores, seconds: 1.5, times: StepTimes::default(), derailed: None }
    }

    #[test]
    fn outcomes_come_back_for_the_same_study_only() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("results/outcomes.jsonl");
        let records: Records = Records::open(&path, "emoji", &1).unwrap();
        assert!(records.is_empty());
        records.add(&outcome(0)).unwrap();
        records.add(&outcome(0)).unwrap();
        records.add(&outcome(1)).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap().lines().count(), 2);
        let again: Records = Records::open(&path, "emoji", &1).unwrap();
        assert_eq!(again.len(), 2);
        assert_eq!(again.find(&outcome(1).setting).unwrap().scores, outcome(1).scores);
        assert!(again.find(&outcome(2).setting).is_none());
        // Another name, and another configuration.
        let open = |study, config| Records::<Outcome>::open(&path, study, &config).unwrap();
        assert!(open("text", 1).is_empty() && open("emoji", 2).is_empty());
    }

    #[test]
    fn a_line_that_was_cut_off_is_made_again_and_a_damaged_one_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("outcomes.jsonl");
        Records::open(&path, "a", &1).unwrap().add(&outcome(0)).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, format!("{text}{}", &text[..9])).unwrap();
        let records = Records::open(&path, "a", &1).unwrap();
        records.add(&outcome(1)).unwrap();
        assert_eq!(Records::<Outcome>::open(&path, "a", &1).unwrap().len(), 2);
        fs::write(&path, format!("{text}nothing\n")).unwrap();
        let error = format!("{:#}", Records::<Outcome>::open(&path, "a", &1).err().unwrap());
        assert!(error.contains("outcomes.jsonl:2: no outcome of a run"), "{error}");
    }
}
