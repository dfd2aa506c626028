//! Search of hyperparameters: a study asks for trials and is told how they went.
//!
//! ```
//! use tpgm_candle::search::{Space, Study};
//!
//! let space = Space::default().log("lr", 1e-6, 1e-2).integer("layers", 1, 8);
//! let mut study = Study::new(space, 0)?; // `Study::open` keeps a journal, and goes on with it
//! for _ in 0..30 {
//!     let trial = study.ask()?;
//!     let (lr, layers) = (trial.value("lr")?, trial.integer("layers")?);
//!     let loss = (lr.log10() + 4.0).powi(2) + (layers - 3).pow(2) as f64; // a short training
//!     study.tell(&trial, loss)?;
//! }
//! let best = study.best().expect("trials were told");
//! assert!(best.loss.unwrap_or(f64::INFINITY) < 1.0);
//! # Ok::<(), tpgm_candle::Error>(())
//! ```
//!
//! The sampler is a tree-structured Parzen estimator (Bergstra et al., NeurIPS 2011) by the crate `tpe`, one for each
//! parameter, as AutoFT (arXiv 2401.10220) searches weights of losses. The first ten trials are random. Judge a trial on
//! held-out data that is not reported afterwards. [`Ranking`] says how promising settings are that are given.
//!
//! | you want | use |
//! |---|---|
//! | a good setting between bounds in as few trials as possible | [`Study::new`], [`Study::with_random`] |
//! | all combinations of some values | [`Study::grid`] |
//! | the same, and to go on after an interruption | [`Study::open`], [`Study::open_with_random`], [`Study::open_grid`] |

mod error;
mod grid;
mod journal;
mod ranking;
mod sampler;
mod space;

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

pub use self::error::{Error, Result};
pub use self::grid::Grid;
use self::journal::{Header, Journal, Opened};
pub use self::ranking::{Component, Density, Ranking};
use self::sampler::Sampler;
use self::space::kept;
pub use self::space::{Range, Space};

/// What is taken off the loss of a trial for each trial before it, so that of equal ones the later wins, as published (AutoFT).
const LATER_WINS: f64 = 1e-10;

/// Values to try.
#[derive(Debug, Clone, PartialEq)]
pub struct Trial {
    number: u64,
    values: BTreeMap<String, f64>,
    space: Space,
}

impl Trial {
    /// Its number, from 0.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// The value of a parameter.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownName`].
    pub fn value(&self, name: &str) -> Result<f64> {
        let unknown =
            || Error::UnknownName { name: name.to_owned(), known: self.values.keys().cloned().collect() };
        self.values.get(name).copied().ok_or_else(unknown)
    }

    /// The value of a parameter with an integer range, or an integer of a grid.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownName`] or [`Error::NotInteger`].
    pub fn integer(&self, name: &str) -> Result<i64> {
        let value = self.value(name)?;
        match self.space.ranges().get(name) {
            Some(Range::Integer { .. }) => Ok(value as i64),
            // Of a grid.
            None if value.fract() == 0.0 && value.abs() <= Range::LARGEST as f64 => Ok(value as i64),
            _ => Err(Error::NotInteger { name: name.to_owned() }),
        }
    }

    /// All values by name.
    pub fn values(&self) -> &BTreeMap<String, f64> {
        &self.values
    }
}

/// A trial that was told.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// Its number.
    pub trial: u64,
    /// Its values.
    pub values: BTreeMap<String, f64>,
    /// Its loss to ten digits; none if it failed.
    pub loss: Option<f64>,
}

impl Record {
    /// What trials are compared by.
    fn score(&self) -> Option<f64> {
        self.loss.map(|loss| loss - LATER_WINS * self.trial as f64)
    }
}

/// A search for the values with the smallest loss. See [the module](self).
///
/// The same seed, space and losses give the same trials, whether the study is stopped in between or not. Several trials may be
/// under way at once.
#[derive(Debug)]
pub struct Study {
    header: Header,
    sampler: Sampler,
    records: Vec<Record>,
    waiting: BTreeMap<u64, BTreeMap<String, f64>>,
    next: u64,
    journal: Option<Journal>,
    dropped: Option<String>,
}

impl Study {
    /// A study in memory, with ten random trials first.
    ///
    /// # Errors
    ///
    /// As [`Space::validate`].
    pub fn new(space: Space, seed: u64) -> Result<Self> {
        Self::with_random(space, seed, 10)
    }

    /// A study in memory whose first `random` trials are random: as many as the space has parameters, for all of them.
    ///
    /// # Errors
    ///
    /// As [`Space::validate`].
    pub fn with_random(space: Space, seed: u64, random: usize) -> Result<Self> {
        space.validate()?;
        Self::of(Header { seed, random, space, grid: None })
    }

    /// A study in memory that tries all combinations of a grid, in their order, whatever comes out. Of equal losses the earlier
    /// trial counts as better.
    ///
    /// # Errors
    ///
    /// As [`Grid::validate`].
    pub fn grid(grid: Grid) -> Result<Self> {
        grid.validate()?;
        Self::of(Header { seed: 0, random: 0, space: Space::default(), grid: Some(grid) })
    }

    fn of(header: Header) -> Result<Self> {
        Ok(Self {
            sampler: Sampler::new(&header.space)?,
            header,
            records: Vec::new(),
            waiting: BTreeMap::new(),
            next: 0,
            journal: None,
            dropped: None,
        })
    }

    /// [`Study::new`] with a journal: a file with one line of JSON per trial that was told. If it is there, the study goes on
    /// after its trials. A last line that is cut, as a program that was stopped leaves it, is dropped; [`Study::dropped`] says
    /// so. Trials that were asked for and not told are forgotten.
    ///
    /// # Errors
    ///
    /// As [`Space::validate`], [`Error::Files`], or [`Error::Journal`] for the journal of another study or a damaged line; the
    /// file is unchanged then.
    pub fn open(path: impl AsRef<Path>, space: Space, seed: u64) -> Result<Self> {
        Self::new(space, seed)?.with_journal(path.as_ref())
    }

    /// [`Study::with_random`] with a journal, as [`Study::open`].
    ///
    /// # Errors
    ///
    /// As [`Study::open`].
    pub fn open_with_random(path: impl AsRef<Path>, space: Space, seed: u64, random: usize) -> Result<Self> {
        Self::with_random(space, seed, random)?.with_journal(path.as_ref())
    }

    /// [`Study::grid`] with a journal, as [`Study::open`].
    ///
    /// # Errors
    ///
    /// As [`Grid::validate`], else as [`Study::open`].
    pub fn open_grid(path: impl AsRef<Path>, grid: Grid) -> Result<Self> {
        Self::grid(grid)?.with_journal(path.as_ref())
    }

    fn with_journal(mut self, path: &Path) -> Result<Self> {
        let Opened { journal, records, dropped } = Journal::open(path, &self.header)?;
        for record in records {
            self.take(record)?;
        }
        Ok(Self { journal: Some(journal), dropped, ..self })
    }

    /// How many trials of a grid were not asked for yet; none if it is no grid, which has no end.
    pub fn left(&self) -> Option<u64> {
        let grid = self.header.grid.as_ref()?;
        Some(grid.len() - (self.records.len() + self.waiting.len()) as u64)
    }

    /// What was left out when the journal was opened, in words.
    pub fn dropped(&self) -> Option<&str> {
        self.dropped.as_deref()
    }

    /// The next values to try.
    ///
    /// # Errors
    ///
    /// [`Error::Sampler`], or [`Error::Exhausted`] for a grid.
    pub fn ask(&mut self) -> Result<Trial> {
        if let Some(grid) = &self.header.grid {
            let known = |number: &u64| {
                self.waiting.contains_key(number) || self.records.iter().any(|record| record.trial == *number)
            };
            let trials = grid.len();
            let number = (0..trials).find(|number| !known(number)).ok_or(Error::Exhausted { trials })?;
            let values = grid.point(number);
            self.waiting.insert(number, values.clone());
            return Ok(Trial { number, values, space: Space::default() });
        }
        let told = self.records.iter().filter(|record| record.loss.is_some()).count();
        let Header { seed, random, ref space, .. } = self.header;
        let values = self.sampler.suggest(space, seed, self.next, told >= random)?;
        let trial = Trial { number: self.next, values, space: space.clone() };
        self.waiting.insert(trial.number, trial.values.clone());
        self.next += 1;
        Ok(trial)
    }

    /// Tells how a trial went: the smaller, the better. Of equal losses the later trial counts as better, or the earlier of a
    /// grid.
    ///
    /// # Errors
    ///
    /// [`Error::Loss`] unless it is finite, [`Error::UnknownTrial`], or the journal cannot be written; nothing was told then.
    pub fn tell(&mut self, trial: &Trial, loss: f64) -> Result<()> {
        if !loss.is_finite() {
            return Err(Error::Loss { trial: trial.number, loss });
        }
        self.end(trial, Some(kept(loss)))
    }

    /// Tells that a trial gave no loss, for example because its training diverged. It is in the journal, and teaches the
    /// sampler nothing.
    ///
    /// # Errors
    ///
    /// As [`Study::tell`].
    pub fn fail(&mut self, trial: &Trial) -> Result<()> {
        self.end(trial, None)
    }

    fn end(&mut self, trial: &Trial, loss: Option<f64>) -> Result<()> {
        if self.waiting.get(&trial.number) != Some(&trial.values) {
            return Err(Error::UnknownTrial { trial: trial.number });
        }
        let record = Record { trial: trial.number, values: trial.values.clone(), loss };
        if let Some(journal) = &mut self.journal {
            journal.add(&record)?;
        }
        self.waiting.remove(&trial.number);
        self.take(record)
    }

    fn take(&mut self, record: Record) -> Result<()> {
        if let Some(score) = record.score() {
            self.sampler.learn(&self.header.space, &record.values, score)?;
        }
        self.next = self.next.max(record.trial + 1);
        self.records.push(record);
        Ok(())
    }

    /// All trials that were told, in this order.
    pub fn records(&self) -> &[Record] {
        &self.records
    }

    /// The trial with the smallest loss.
    pub fn best(&self) -> Option<&Record> {
        if self.header.grid.is_some() {
            let scored = self.records.iter().filter_map(|record| Some((record.loss?, record)));
            return scored
                .min_by(|(a, x), (b, y)| a.total_cmp(b).then(x.trial.cmp(&y.trial)))
                .map(|(_, record)| record);
        }
        let scored = self.records.iter().filter_map(|record| Some((record.score()?, record)));
        scored.min_by(|(a, x), (b, y)| a.total_cmp(b).then(y.trial.cmp(&x.trial))).map(|(_, record)| record)
    }
}
