//! Sets of named tensors, and the groups that give them settings.

use std::collections::HashMap;

use wildmatch::WildMatch;

use crate::constraint::{Constraint, Pull, PullScale};
use crate::element::DType;
use crate::error::{Error, Result};
use crate::norm::{Norm, rows_of};
use crate::rule::{Rule, at_least_zero};

/// Name, shape and element type of one tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorSpec {
    /// Unique name, for example `encoder.layer.0.attention.query.weight`.
    pub name: String,
    /// Dimensions, outermost first; empty for a scalar.
    pub shape: Vec<usize>,
    /// Element type of the weights.
    pub dtype: DType,
}

impl TensorSpec {
    /// Number of elements.
    pub fn numel(&self) -> usize {
        self.shape.iter().product()
    }

    /// `(rows, row_len)`, see [`rows_of`].
    pub fn rows(&self) -> (usize, usize) {
        rows_of(&self.shape)
    }
}

/// Where a tensor's displacement is measured from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "lowercase"))]
pub enum AnchorKind {
    /// Its pre-trained value, given with every call.
    #[default]
    Pretrained,
    /// Zero: LoRA factors, or a new layer under a weight penalty. Nothing is stored.
    Zero,
    /// None: a new head. Constraints leave the tensor alone.
    None,
}

/// Overrides for the tensors that a pattern selects. Fields left unset keep what earlier groups, or the optimizer's own
/// rule and constraint, say; of two groups that set the same field of a tensor the later one wins.
///
/// In patterns `*` stands for any number of characters, dots included, and `?` for one.
///
/// ```
/// # use tpgm_core::Group;
/// let head = Group::new("classifier.*").no_anchor().lr(1e-2);
/// let no_decay = Group::any(["*.bias", "*norm*.weight"]).weight_decay(0.0);
/// ```
#[derive(Debug, Clone, PartialEq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(default))]
pub struct Group {
    /// Patterns; a tensor is selected if one matches. Each must match some tensor.
    pub patterns: Vec<String>,
    /// Initial learning rate instead of the rule's. A schedule scales both alike.
    pub lr: Option<f64>,
    /// Weight decay instead of the rule's.
    pub weight_decay: Option<f64>,
    /// Constraint instead of the optimizer's.
    pub constraint: Option<Constraint>,
    /// Norm of the constraint.
    pub norm: Option<Norm>,
    /// The constraint's one strength: see [`Group::strength`].
    pub strength: Option<f64>,
    /// `Some(true)`: the plain rule, no constraint.
    pub excluded: Option<bool>,
    /// Where the displacement is measured from.
    pub anchor: Option<AnchorKind>,
}

impl Group {
    /// The tensors whose names match `pattern`.
    pub fn new(pattern: impl Into<String>) -> Self {
        Self::any([pattern])
    }

    /// The tensors whose names match one of `patterns`.
    pub fn any<S: Into<String>>(patterns: impl IntoIterator<Item = S>) -> Self {
        Self { patterns: patterns.into_iter().map(Into::into).collect(), ..Self::default() }
    }

    /// Sets the initial learning rate.
    #[must_use]
    pub fn lr(mut self, lr: f64) -> Self {
        self.lr = Some(lr);
        self
    }

    /// Sets the weight decay.
    #[must_use]
    pub fn weight_decay(mut self, weight_decay: f64) -> Self {
        self.weight_decay = Some(weight_decay);
        self
    }

    /// Sets the constraint.
    #[must_use]
    pub fn constraint(mut self, constraint: impl Into<Constraint>) -> Self {
        self.constraint = Some(constraint.into());
        self
    }

    /// Sets the norm of the constraint (fixed radius and TPGM).
    #[must_use]
    pub fn norm(mut self, norm: Norm) -> Self {
        self.norm = Some(norm);
        self
    }

    /// Sets the constraint's one strength: the radius of a fixed radius or scale, `k` of FTP, λ of SPD, α of L2-SP, the factor
    /// of a pull, the learning rate of the learned scalar of TPGM and DiGraP.
    #[must_use]
    pub fn strength(mut self, strength: f64) -> Self {
        self.strength = Some(strength);
        self
    }

    /// Takes the tensors out of the constraint; they keep the plain rule.
    #[must_use]
    pub fn excluded(mut self) -> Self {
        self.excluded = Some(true);
        self
    }

    /// Says that the tensors have no pre-trained value: they keep the plain rule.
    #[must_use]
    pub fn no_anchor(mut self) -> Self {
        self.anchor = Some(AnchorKind::None);
        self
    }

    /// Measures displacements from zero.
    #[must_use]
    pub fn zero_anchor(mut self) -> Self {
        self.anchor = Some(AnchorKind::Zero);
        self
    }
}

/// What applies to one tensor, after all groups.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Settings {
    /// Learning rate relative to the rule's: the step uses `lr * lr_scale`.
    pub lr_scale: f64,
    /// Weight decay.
    pub weight_decay: f64,
    /// Constraint; [`Constraint::None`] for excluded tensors and those without an anchor.
    pub constraint: Constraint,
    /// Where the displacement is measured from.
    pub anchor: AnchorKind,
}

/// An ordered set of named tensors with groups. Made once; optimizers and projectors are made from it.
///
/// ```
/// use tpgm_core::{DType, Group, ParamSet};
/// let set = ParamSet::builder()
///     .tensor("encoder.weight", [16, 8], DType::F32)
///     .tensor("head.weight", [4, 16], DType::F32)
///     .group(Group::new("head.*").no_anchor())
///     .build()?;
/// assert_eq!(set.numel(), 16 * 8 + 4 * 16);
/// # Ok::<(), tpgm_core::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct ParamSet {
    tensors: Vec<TensorSpec>,
    groups: Vec<(Group, Vec<usize>)>,
    index: HashMap<String, usize>,
    /// Elements of the set that this one is a part of.
    whole: Option<usize>,
}

/// Collects tensors and groups for a [`ParamSet`].
#[derive(Debug, Clone, Default)]
pub struct ParamSetBuilder {
    tensors: Vec<TensorSpec>,
    groups: Vec<Group>,
}

impl ParamSetBuilder {
    /// Adds a tensor.
    #[must_use]
    pub fn tensor(mut self, name: impl Into<String>, shape: impl Into<Vec<usize>>, dtype: DType) -> Self {
        self.tensors.push(TensorSpec { name: name.into(), shape: shape.into(), dtype });
        self
    }

    /// Adds tensors.
    #[must_use]
    pub fn tensors(mut self, tensors: impl IntoIterator<Item = TensorSpec>) -> Self {
        self.tensors.extend(tensors);
        self
    }

    /// Adds a group. Later groups win.
    #[must_use]
    pub fn group(mut self, group: Group) -> Self {
        self.groups.push(group);
        self
    }

    /// Adds groups. Later groups win.
    #[must_use]
    pub fn groups(mut self, groups: impl IntoIterator<Item = Group>) -> Self {
        self.groups.extend(groups);
        self
    }

    /// Makes the set.
    ///
    /// # Errors
    ///
    /// [`Error::DuplicateTensor`], [`Error::PatternMatchesNothing`], [`Error::TooFew`] for a group without patterns, or
    /// [`Error::InvalidOption`] for a group's value outside its range.
    pub fn build(self) -> Result<ParamSet> {
        let mut index = HashMap::with_capacity(self.tensors.len());
        for (i, spec) in self.tensors.iter().enumerate() {
            if index.insert(spec.name.clone(), i).is_some() {
                return Err(Error::DuplicateTensor { tensor: spec.name.clone() });
            }
        }
        let mut groups = Vec::with_capacity(self.groups.len());
        for group in self.groups {
            group.lr.map_or(Ok(()), |lr| at_least_zero("Group::lr", lr))?;
            group.weight_decay.map_or(Ok(()), |wd| at_least_zero("Group::weight_decay", wd))?;
            if group.patterns.is_empty() {
                return Err(Error::TooFew { what: "patterns of a group", needed: 1, got: 0 });
            }
            let members = select(&self.tensors, &group.patterns)?;
            groups.push((group, members));
        }
        Ok(ParamSet { tensors: self.tensors, groups, index, whole: None })
    }
}

impl ParamSet {
    /// Starts a set.
    pub fn builder() -> ParamSetBuilder {
        ParamSetBuilder::default()
    }

    /// All tensors, in order.
    pub fn tensors(&self) -> &[TensorSpec] {
        &self.tensors
    }

    /// All groups, in order.
    pub fn groups(&self) -> impl Iterator<Item = &Group> {
        self.groups.iter().map(|(group, _)| group)
    }

    /// Number of tensors.
    pub fn len(&self) -> usize {
        self.tensors.len()
    }

    /// True without tensors.
    pub fn is_empty(&self) -> bool {
        self.tensors.is_empty()
    }

    /// Number of elements of all tensors.
    pub fn numel(&self) -> usize {
        self.tensors.iter().map(TensorSpec::numel).sum()
    }

    /// Position of a tensor.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownTensor`].
    pub fn position(&self, name: &str) -> Result<usize> {
        self.index.get(name).copied().ok_or_else(|| Error::UnknownTensor { tensor: name.to_owned() })
    }

    /// Positions of the tensors that match one of `patterns`, in order.
    ///
    /// # Errors
    ///
    /// [`Error::PatternMatchesNothing`] for a pattern that selects nothing.
    pub fn select<S: AsRef<str>>(&self, patterns: &[S]) -> Result<Vec<usize>> {
        select(&self.tensors, patterns)
    }

    /// What applies to each tensor when the set is driven by `rule` and `constraint`.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidOption`], [`Error::NoStrength`] or [`Error::NoNorm`].
    pub fn settings(&self, rule: &Rule, constraint: &Constraint) -> Result<Vec<Settings>> {
        rule.validate()?;
        constraint.validate()?;
        let merged = self.merged();
        merged
            .iter()
            .zip(&self.tensors)
            .map(|(group, spec)| {
                let settings = group.resolve(&spec.name, rule, constraint)?;
                Ok(Settings { constraint: self.in_whole(settings.constraint), ..settings })
            })
            .collect()
    }

    /// The tensors at `positions` as a set of their own, with the settings that they have in this one: groups go along
    /// whether they select any of them or not, and what a method divides by the size of the set stays what it was. The
    /// optimizers of several parts give each tensor the same bits as one optimizer of the whole, except for a global norm,
    /// which needs all of them: see [`Optimizer::grad_squares`](crate::Optimizer::grad_squares).
    ///
    /// # Panics
    ///
    /// If a position lies outside.
    #[must_use]
    pub fn part(&self, positions: &[usize]) -> ParamSet {
        self.pieces(positions.iter().map(|&i| (i, self.tensors[i].clone())))
    }

    /// As [`ParamSet::part`], of tensors that stand for the ones at these positions or for some of their rows. Each has the
    /// settings of that tensor, under a name and a shape of its own; no two have the same name.
    ///
    /// # Panics
    ///
    /// If a position lies outside.
    #[must_use]
    pub fn pieces(&self, tensors: impl IntoIterator<Item = (usize, TensorSpec)>) -> ParamSet {
        let (positions, tensors): (Vec<usize>, Vec<TensorSpec>) = tensors.into_iter().unzip();
        let mut groups: Vec<(Group, Vec<usize>)> =
            self.groups.iter().map(|(group, _)| (group.clone(), Vec::new())).collect();
        for ((_, to), (_, members)) in groups.iter_mut().zip(&self.groups) {
            let mut member = vec![false; self.tensors.len()];
            members.iter().for_each(|&i| member[i] = true);
            to.extend((0..positions.len()).filter(|&i| member[positions[i]]));
        }
        ParamSet {
            index: tensors.iter().enumerate().map(|(i, spec)| (spec.name.clone(), i)).collect(),
            groups,
            tensors,
            whole: Some(self.whole.unwrap_or(self.numel())),
        }
    }

    /// A constraint that looks at the size of the set, as one of the whole set.
    fn in_whole(&self, constraint: Constraint) -> Constraint {
        match (self.whole, constraint) {
            (Some(all), Constraint::Pull(pull)) if pull.scale == PullScale::SetMean => {
                Pull { strength: pull.factor(0, all), scale: PullScale::Sum, ..pull }.into()
            }
            (_, constraint) => constraint,
        }
    }

    /// Where each tensor's displacement is measured from; [`AnchorKind::None`] also for excluded tensors.
    pub fn anchors(&self) -> Vec<AnchorKind> {
        let anchor = |group: &Group| match group.excluded {
            Some(true) => AnchorKind::None,
            _ => group.anchor.unwrap_or_default(),
        };
        self.merged().iter().map(anchor).collect()
    }

    /// The same names, types and groups with other shapes, one per tensor.
    pub(crate) fn with_shapes(&self, shapes: impl IntoIterator<Item = Vec<usize>>) -> ParamSet {
        let mut set = self.clone();
        for (spec, shape) in set.tensors.iter_mut().zip(shapes) {
            spec.shape = shape;
        }
        set
    }

    /// All groups of each tensor, laid over each other.
    fn merged(&self) -> Vec<Group> {
        let mut merged = vec![Group::default(); self.tensors.len()];
        for (group, members) in &self.groups {
            for &i in members {
                merged[i].overlay(group);
            }
        }
        merged
    }
}

impl Group {
    /// Takes over every field that `later` sets. Choosing another constraint drops the norm and strength that were
    /// chosen for the earlier one.
    fn overlay(&mut self, later: &Group) {
        if later.constraint.is_some() {
            self.norm = None;
            self.strength = None;
        }
        self.lr = later.lr.or(self.lr);
        self.weight_decay = later.weight_decay.or(self.weight_decay);
        self.constraint = later.constraint.or(self.constraint);
        self.norm = later.norm.or(self.norm);
        self.strength = later.strength.or(self.strength);
        self.excluded = later.excluded.or(self.excluded);
        self.anchor = later.anchor.or(self.anchor);
    }

    fn resolve(&self, name: &str, rule: &Rule, default: &Constraint) -> Result<Settings> {
        let mut constraint = self.constraint.unwrap_or(*default);
        let kind = constraint.name();
        if let Some(norm) = self.norm {
            constraint = constraint
                .with_norm(norm)
                .ok_or_else(|| Error::NoNorm { tensor: name.to_owned(), constraint: kind })?;
        }
        if let Some(strength) = self.strength {
            constraint = constraint
                .with_strength(strength)
                .ok_or_else(|| Error::NoStrength { tensor: name.to_owned(), constraint: kind })?;
        }
        constraint.validate()?;
        let anchor = self.anchor.unwrap_or_default();
        if self.excluded == Some(true) || anchor == AnchorKind::None {
            constraint = Constraint::None;
        }
        let lr_scale = match self.lr {
            None => 1.0,
            Some(lr) if lr == rule.lr() => 1.0,
            Some(_) if rule.lr() == 0.0 => {
                return Err(Error::InvalidOption {
                    option: "lr of the rule",
                    value: 0.0,
                    requirement: "above 0 when a group has its own lr",
                });
            }
            Some(lr) => lr / rule.lr(),
        };
        Ok(Settings {
            lr_scale,
            weight_decay: self.weight_decay.unwrap_or(rule.weight_decay()),
            constraint,
            anchor,
        })
    }
}

fn select<S: AsRef<str>>(tensors: &[TensorSpec], patterns: &[S]) -> Result<Vec<usize>> {
    let mut selected = vec![false; tensors.len()];
    for pattern in patterns {
        let matcher = WildMatch::new(pattern.as_ref());
        let mut any = false;
        for (flag, spec) in selected.iter_mut().zip(tensors) {
            if matcher.matches(&spec.name) {
                *flag = true;
                any = true;
            }
        }
        if !any {
            return Err(Error::PatternMatchesNothing {
                pattern: pattern.as_ref().to_owned(),
                tensors: tensors.len(),
                first: tensors.first().map(|spec| spec.name.clone()).unwrap_or_default(),
            });
        }
    }
    Ok(selected.iter().enumerate().filter_map(|(i, &flag)| flag.then_some(i)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{AdamW, FixedRadius, Ftp};

    fn set(groups: Vec<Group>) -> Result<ParamSet> {
        ParamSet::builder()
            .tensor("a.weight", [2, 3], DType::F32)
            .tensor("a.bias", [2], DType::F32)
            .tensor("head.weight", [4, 2], DType::F32)
            .groups(groups)
            .build()
    }

    #[test]
    fn later_groups_win_field_by_field() {
        let set = set(vec![
            Group::new("*").weight_decay(0.1).lr(2e-3),
            Group::new("*.bias").weight_decay(0.0),
            Group::new("head.*").no_anchor().lr(1e-1),
        ])
        .unwrap();
        let settings = set.settings(&AdamW::default().into(), &Ftp::default().into()).unwrap();
        assert_eq!((settings[0].weight_decay, settings[0].lr_scale), (0.1, 2.0));
        assert_eq!((settings[1].weight_decay, settings[1].lr_scale), (0.0, 2.0));
        assert_eq!(settings[2].constraint, Constraint::None);
        assert_eq!(settings[2].lr_scale, 100.0);
    }

    #[test]
    fn strength_and_norm_go_to_the_constraint_in_force() {
        let set = set(vec![
            Group::new("a.*").strength(0.5),
            Group::new("head.*").constraint(FixedRadius::default()).norm(Norm::L2).strength(3.0),
        ])
        .unwrap();
        let settings = set.settings(&AdamW::default().into(), &Ftp::default().into()).unwrap();
        assert_eq!(settings[0].constraint, Constraint::Ftp(Ftp { k: 0.5, ..Ftp::default() }));
        assert_eq!(settings[2].constraint, FixedRadius { radius: 3.0, norm: Norm::L2 }.into());
    }

    #[test]
    fn mistakes_are_named() {
        assert_eq!(
            set(vec![Group::new("haed.*")]).unwrap_err(),
            Error::PatternMatchesNothing { pattern: "haed.*".into(), tensors: 3, first: "a.weight".into() }
        );
        let twice = ParamSet::builder().tensor("w", [1], DType::F32).tensor("w", [2], DType::F32).build();
        assert_eq!(twice.unwrap_err(), Error::DuplicateTensor { tensor: "w".into() });
        let rule = AdamW::default().into();
        let ftp = Ftp::default().into();
        let norm = set(vec![Group::new("a.*").norm(Norm::L2)]).unwrap().settings(&rule, &ftp);
        assert!(matches!(norm, Err(Error::NoNorm { .. })), "{norm:?}");
        let strength = set(vec![Group::new("a.*").strength(1.0)]).unwrap().settings(&rule, &Constraint::None);
        assert!(matches!(strength, Err(Error::NoStrength { .. })), "{strength:?}");
        let k = set(vec![Group::new("a.*").strength(1.5)]).unwrap().settings(&rule, &ftp);
        assert!(matches!(k, Err(Error::InvalidOption { option: "Ftp::k", .. })), "{k:?}");
        assert!(matches!(set(vec![Group::default()]), Err(Error::TooFew { .. })));
    }
}
