//! The inputs of a merge: opened, and compared name by name before anything is written.

use std::collections::BTreeSet;
use std::path::Path;

use tpgm_core::DType;
use wildmatch::WildMatch;

use super::error::{Error, Result};
use super::integers::{check_integers, is_vector};
use super::plan::{MergeMethod, MergePlan};
use super::quantized::refuse_quantized;
use super::rename::Renames;
use super::report::{LeftOut, Why};
use super::select::Patterns;
use crate::{Entry, OpenOptions, Weights};

/// The opened inputs of a merge.
pub(super) struct Inputs {
    pub(super) anchor: Option<Weights>,
    pub(super) models: Vec<Weights>,
    pub(super) fisher: Option<[Weights; 2]>,
}

/// What becomes of a tensor of the first model.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Fate {
    /// It is merged, in this element type.
    Merged(DType),
    /// It is copied bit for bit.
    Copied,
    /// It is not in the output.
    LeftOut(Why),
}

/// What becomes of all tensors: those of the output in its order, and those that it lacks.
pub(super) type Sorted<'a> = (Vec<(&'a str, Fate)>, Vec<LeftOut>);

impl Inputs {
    pub(super) fn open<P: AsRef<Path>>(
        plan: &MergePlan,
        anchor: Option<&Path>,
        models: &[P],
    ) -> Result<Self> {
        let fisher = match &plan.method {
            MergeMethod::Wise { fisher, .. } => fisher.as_ref(),
            _ => None,
        };
        let mut renames = Renames::new(&plan.rename);
        let mut open = |path: &Path| -> Result<Weights> { Ok(renames.open(path, &OpenOptions::default())?) };
        let anchor = anchor.map(&mut open).transpose()?;
        let models = models.iter().map(|path| open(path.as_ref())).collect::<Result<Vec<_>>>()?;
        let fisher = fisher.map(|[f0, f1]| Ok::<_, Error>([open(f0)?, open(f1)?])).transpose()?;
        renames.check_used(&models[0])?;
        Ok(Self { anchor, models, fisher })
    }

    /// The model that says what the output holds.
    pub(super) fn first(&self) -> &Weights {
        &self.models[0]
    }

    /// The anchor and the other models.
    fn others(&self) -> impl Iterator<Item = &Weights> + Clone {
        self.anchor.iter().chain(&self.models[1..])
    }

    /// The names that the plan drops from all inputs, and those that it copies from the first model. A pattern that matches
    /// nothing is an error, and so is an output without tensors.
    pub(super) fn chosen(&self, plan: &MergePlan) -> Result<(BTreeSet<&str>, BTreeSet<&str>)> {
        let first = self.first();
        let all_names = self.models.iter().chain(&self.anchor).flat_map(Weights::names);
        let dropped = Patterns::new(&plan.drop).matches(all_names)?;
        let kept = first.names().filter(|name| !dropped.contains(name));
        if !dropped.is_empty() && kept.clone().next().is_none() {
            return Err(Error::NothingLeft { model: first.place() });
        }
        let copied = Patterns::new(&plan.copy).matches(kept)?;
        Ok((dropped, copied))
    }

    /// Compares all inputs. What does not fit is an error.
    pub(super) fn sort(&self, plan: &MergePlan) -> Result<Sorted<'_>> {
        let first = self.first();
        let (dropped, copied) = self.chosen(plan)?;
        let copy: Vec<WildMatch> = plan.copy.iter().map(|pattern| WildMatch::new(pattern)).collect();
        let asked = |name: &str| dropped.contains(name) || copy.iter().any(|pattern| pattern.matches(name));
        for model in self.models.iter().chain(&self.anchor) {
            refuse_quantized(model, asked)?;
        }

        let (mut fates, mut left_out) = (Vec::new(), Vec::new());
        for name in first.names() {
            let entry = first.get(name).expect("a listed tensor");
            let fate = if dropped.contains(name) {
                Fate::LeftOut(Why::Asked)
            } else if copied.contains(name) {
                Fate::Copied
            } else if entry.is_discrete() {
                check_integers(name, first, self.others())?;
                Fate::Copied
            } else {
                self.check(name, &entry, plan.dtype)?
            };
            match fate {
                Fate::LeftOut(why) => {
                    left_out.push(LeftOut { name: name.to_owned(), model: first.place(), why });
                }
                fate => fates.push((name, fate)),
            }
        }
        for model in self.others() {
            for name in model.names().filter(|name| first.get(name).is_none()) {
                let why = if asked(name) {
                    Why::Asked
                } else if model.twins(name).any(|twin| first.get(twin).is_some()) {
                    Why::Tied
                } else if model.get(name).is_some_and(|entry| is_vector(&entry)) {
                    Why::Integer
                } else {
                    return Err(missing(name, first, model));
                };
                left_out.push(LeftOut { name: name.to_owned(), model: model.place(), why });
            }
        }
        self.check_fisher(plan, &fates)?;
        Ok((fates, left_out))
    }

    /// Whether a tensor can be merged: every input has it, in one shape, in any floating-point type.
    fn check(&self, name: &str, entry: &Entry<'_>, asked: Option<DType>) -> Result<Fate> {
        let first = self.first();
        let own = float(name, first, entry)?;
        for model in self.others() {
            let Some(other) = model.get(name) else {
                // The second name of a tied weight is in PyTorch's files only.
                let tied = first.twins(name).any(|twin| self.others().all(|model| model.get(twin).is_some()));
                return if tied { Ok(Fate::LeftOut(Why::Tied)) } else { Err(missing(name, model, first)) };
            };
            if other.shape != entry.shape || other.float().is_none() {
                return Err(mismatch(name, (model, &other), (first, entry)));
            }
        }
        let anchors = self.anchor.as_ref().and_then(|anchor| anchor.get(name)?.float());
        Ok(Fate::Merged(asked.or(anchors).unwrap_or(own)))
    }

    /// Fisher information has the names and shapes of weights that are merged, in both files or in neither.
    fn check_fisher(&self, plan: &MergePlan, fates: &[(&str, Fate)]) -> Result<()> {
        let Some([fisher0, fisher1]) = &self.fisher else { return Ok(()) };
        let first = self.first();
        for (fisher, other) in [(fisher0, fisher1), (fisher1, fisher0)] {
            for name in fisher.names() {
                let entry = fisher.get(name).expect("a listed tensor");
                if entry.is_discrete() || plan.drop.iter().any(|drop| WildMatch::new(drop).matches(name)) {
                    continue;
                }
                let weight = first.get(name).ok_or_else(|| missing(name, first, fisher))?;
                if !fates.iter().any(|(merged, fate)| *merged == name && *fate != Fate::Copied) {
                    continue;
                }
                float(name, fisher, &entry)?;
                if entry.shape != weight.shape {
                    return Err(mismatch(name, (fisher, &entry), (first, &weight)));
                }
                if other.get(name).is_none() {
                    return Err(missing(name, other, fisher));
                }
            }
        }
        Ok(())
    }
}

fn float(name: &str, model: &Weights, entry: &Entry<'_>) -> Result<DType> {
    entry.float().ok_or_else(|| Error::NotMergeable {
        tensor: name.to_owned(),
        dtype: entry.dtype.to_string(),
        model: model.place(),
    })
}

pub(super) fn missing(name: &str, model: &Weights, other: &Weights) -> Error {
    Error::MissingTensor { tensor: name.to_owned(), model: model.place(), other: other.place() }
}

pub(super) fn mismatch(
    name: &str,
    (model, got): (&Weights, &Entry<'_>),
    (other, expected): (&Weights, &Entry<'_>),
) -> Error {
    Error::TensorMismatch {
        tensor: name.to_owned(),
        model: model.place(),
        got: got.describe().into(),
        other: other.place(),
        expected: expected.describe().into(),
    }
}
