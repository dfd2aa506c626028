//! What came out.

use std::collections::BTreeMap;
use std::fmt;

use super::compare::{Deviation, limit};
use super::error::GoldenError;
use crate::element::DType;

/// Where the gradients of a run come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// The file.
    Fed,
    /// The case's model.
    EndToEnd,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Mode::Fed => "fed",
            Mode::EndToEnd => "end to end",
        })
    }
}

/// All cases of a folder.
#[derive(Debug)]
pub struct Report {
    /// What was tested.
    pub subject: String,
    /// In the order of the index.
    pub cases: Vec<CaseReport>,
}

/// One case.
#[derive(Debug)]
pub struct CaseReport {
    /// Its name.
    pub case: String,
    /// Why it could not be run at all, if so.
    pub error: Option<GoldenError>,
    /// Its runs, by element type and mode.
    pub runs: Vec<RunReport>,
}

/// One run of a case.
#[derive(Debug)]
pub struct RunReport {
    /// Element type of the run.
    pub dtype: DType,
    /// Where its gradients came from.
    pub mode: Mode,
    /// What came out.
    pub outcome: Outcome,
}

/// What came out of a run.
#[derive(Debug)]
pub enum Outcome {
    /// The subject ran to the end.
    Compared {
        /// The largest deviation; `None` if nothing could be compared.
        worst: Option<Deviation>,
        /// Numbers compared.
        compared: usize,
        /// Tensors in the file whose quantity the subject does not expose, by quantity.
        hidden: BTreeMap<&'static str, usize>,
    },
    /// The run broke off.
    Broken(GoldenError),
}

impl RunReport {
    /// Something was compared, and no deviation is above the limit: 1e-10 in f64, 1e-3 in f32.
    pub fn passed(&self) -> bool {
        match &self.outcome {
            Outcome::Compared { worst, .. } => {
                worst.as_ref().is_some_and(|worst| worst.value <= limit(self.dtype))
            }
            Outcome::Broken(_) => false,
        }
    }
}

impl CaseReport {
    /// Every run passed, and there was one.
    pub fn passed(&self) -> bool {
        self.error.is_none() && !self.runs.is_empty() && self.runs.iter().all(RunReport::passed)
    }

    /// The largest deviation of the runs in one element type.
    pub fn worst(&self, dtype: DType) -> Option<&Deviation> {
        self.runs
            .iter()
            .filter(|run| run.dtype == dtype)
            .filter_map(|run| match &run.outcome {
                Outcome::Compared { worst, .. } => worst.as_ref(),
                Outcome::Broken(_) => None,
            })
            .reduce(|a, b| if b.value > a.value { b } else { a })
    }
}

impl Report {
    /// Every case passed.
    pub fn passed(&self) -> bool {
        self.cases.iter().all(CaseReport::passed)
    }

    /// How many cases passed, and how many failed.
    pub fn counts(&self) -> (usize, usize) {
        let passed = self.cases.iter().filter(|case| case.passed()).count();
        (passed, self.cases.len() - passed)
    }
}

impl fmt::Display for Deviation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { value, tensor, element, got, expected } = self;
        write!(f, "{value:.1e} at {tensor}[{element}]: {got:e}, expected {expected:e}")
    }
}

/// `f64 fed: 1.2e-13 at ...`, with what was not compared.
impl fmt::Display for RunReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: ", self.dtype, self.mode)?;
        match &self.outcome {
            Outcome::Broken(error) => f.write_str(&error.with_causes()),
            Outcome::Compared { worst, compared, hidden } => {
                match worst {
                    None => f.write_str("nothing could be compared")?,
                    Some(worst) => write!(f, "{worst} ({compared} numbers)")?,
                }
                for (i, (quantity, count)) in hidden.iter().enumerate() {
                    let separator = if i == 0 { "; not exposed: " } else { ", " };
                    write!(f, "{separator}{count} x {quantity}")?;
                }
                Ok(())
            }
        }
    }
}

/// One line: verdict, name, worst deviation in f64 and f32; then a line for each run that failed.
impl fmt::Display for CaseReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = if self.passed() { "ok" } else { "FAILED" };
        write!(f, "{verdict:<7}{:<34}", self.case)?;
        for dtype in [DType::F64, DType::F32] {
            if let Some(worst) = self.worst(dtype) {
                write!(f, " {dtype} {:.1e} at {}", worst.value, worst.tensor)?;
            }
        }
        if let Some(error) = &self.error {
            write!(f, " {}", error.with_causes())?;
        }
        for run in self.runs.iter().filter(|run| !run.passed()) {
            write!(f, "\n       {run}")?;
        }
        Ok(())
    }
}

/// A line for each case, then `N passed, N failed`.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for case in &self.cases {
            writeln!(f, "{case}")?;
        }
        let (passed, failed) = self.counts();
        write!(f, "{passed} passed, {failed} failed")
    }
}
