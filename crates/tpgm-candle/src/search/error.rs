//! What can go wrong with a search.

use std::path::PathBuf;

use super::Range;
use crate::files;
use crate::room::into_candle;

/// What can go wrong with a search.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file cannot be read or written.
    #[error(transparent)]
    Files(#[from] files::Error),
    /// There is nothing to search.
    #[error("the space has no parameters; add some with `Space::log`, `Space::uniform` or `Space::integer`")]
    EmptySpace,
    /// A grid has nothing to try.
    #[error(
        "the grid has no {}; add some with `Grid::values`",
        name.as_ref().map_or("parameters".to_owned(), |name| format!("values of `{name}`"))
    )]
    EmptyGrid {
        /// The parameter without values; none if there is no parameter.
        name: Option<String>,
    },
    /// A value of a grid is no number.
    #[error("parameter `{name}`: a value of the grid is {value}; it must be finite")]
    GridValue {
        /// The parameter.
        name: String,
        /// The value.
        value: f64,
    },
    /// A grid has nothing left.
    #[error(
        "all {trials} combinations of the grid were asked for; `Study::left` says how many there still are"
    )]
    Exhausted {
        /// Number of combinations.
        trials: u64,
    },
    /// A range has no room, or numbers that its kind does not take.
    #[error("parameter `{name}`: its range is {low} to {high}, but must be {requirement}")]
    Range {
        /// The parameter.
        name: String,
        /// Its lower end.
        low: f64,
        /// Its upper end.
        high: f64,
        /// What it must be.
        requirement: &'static str,
    },
    /// A space has a name twice.
    #[error("there are two parameters named `{name}`")]
    DuplicateName {
        /// The name.
        name: String,
    },
    /// A trial has no parameter of this name.
    #[error("the space has no parameter `{name}`; it has {known:?}")]
    UnknownName {
        /// The name.
        name: String,
        /// The names there are.
        known: Vec<String>,
    },
    /// A parameter that is no integer was asked for as one.
    #[error("parameter `{name}` is no integer; ask for it with `Trial::value`")]
    NotInteger {
        /// The name.
        name: String,
    },
    /// A value is outside its range.
    #[error("trial {trial}: its value is {value}, outside {range:?}")]
    Outside {
        /// The trial, from 0.
        trial: u64,
        /// Its value.
        value: f64,
        /// The range.
        range: Range,
    },
    /// The result of a trial is no number.
    #[error("trial {trial}: its loss is {loss}; tell a finite number, or that it failed with `Study::fail`")]
    Loss {
        /// The trial.
        trial: u64,
        /// What was told.
        loss: f64,
    },
    /// A trial was told that is not waited for.
    #[error(
        "trial {trial} is not one that this study waits for: it was told before, or asked of another study"
    )]
    UnknownTrial {
        /// The trial.
        trial: u64,
    },
    /// A journal is of another study, or not a journal.
    #[error("{path}, line {line}: {problem}")]
    Journal {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong with it.
        problem: String,
    },
    /// The sampler failed.
    #[error("parameter `{name}`: the sampler failed: {problem}")]
    Sampler {
        /// The parameter.
        name: String,
        /// What it said.
        problem: String,
    },
}

/// A result with this room's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

into_candle!(Files);
