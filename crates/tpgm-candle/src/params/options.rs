//! What a user says about a model before it is built.

use std::fmt;

use candle_core::DType;
use wildmatch::WildMatch;

use super::Params;
use super::error::{Error, Result};

/// Names that batch-norm layers keep their running statistics under.
const BATCH_NORM: [&str; 3] = ["*.running_mean", "*.running_var", "*.num_batches_tracked"];

/// What a name in the model is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Role {
    Trainable,
    Frozen,
    Buffer,
}

#[derive(Debug)]
pub(super) struct Options {
    pub(super) head: Patterns,
    pub(super) freeze: Patterns,
    pub(super) buffer: Patterns,
    pub(super) zero_anchor: Patterns,
    pub(super) unused: Patterns,
    renames: Vec<Rename>,
    pub(super) dtype: DType,
    pub(super) seed: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            head: Patterns::new("head"),
            freeze: Patterns::new("freeze"),
            buffer: Patterns::new("buffer"),
            zero_anchor: Patterns::new("zero_anchor"),
            unused: Patterns::new("unused"),
            renames: vec![],
            dtype: DType::F32,
            seed: 0,
        }
    }
}

impl Options {
    /// A head is trained even if a wider pattern freezes the rest; running statistics are never trained.
    pub(super) fn role(&self, name: &str) -> Role {
        if self.buffer.matches(name) || BATCH_NORM.iter().any(|pattern| WildMatch::new(pattern).matches(name))
        {
            Role::Buffer
        } else if self.freeze.matches(name) && !self.head.matches(name) {
            Role::Frozen
        } else {
            Role::Trainable
        }
    }

    /// The name in the checkpoint of what the model calls `name`.
    pub(super) fn checkpoint_name(&self, name: &str) -> String {
        self.renames.iter().find_map(|rename| rename.apply(name)).unwrap_or_else(|| name.to_owned())
    }

    /// Every pattern and renaming must have met one of the model's names, or of the checkpoint's where it speaks of these.
    pub(super) fn check<'a>(
        &self,
        names: impl Iterator<Item = &'a str> + Clone,
        checkpoint: impl Iterator<Item = &'a str> + Clone,
    ) -> Result<()> {
        self.unused.check(checkpoint)?;
        for patterns in [&self.head, &self.freeze, &self.buffer, &self.zero_anchor] {
            patterns.check(names.clone())?;
        }
        for rename in &self.renames {
            if !names.clone().any(|name| rename.apply(name).is_some()) {
                return Err(unmatched("rename", rename.text(), names));
            }
        }
        Ok(())
    }
}

/// Patterns given to one option.
#[derive(Debug, Clone)]
pub(crate) struct Patterns {
    option: &'static str,
    patterns: Vec<String>,
}

impl Patterns {
    pub(crate) fn new(option: &'static str) -> Self {
        Self { option, patterns: vec![] }
    }

    pub(crate) fn push(&mut self, pattern: impl Into<String>) {
        self.patterns.push(pattern.into());
    }

    pub(crate) fn matches(&self, name: &str) -> bool {
        self.patterns.iter().any(|pattern| WildMatch::new(pattern).matches(name))
    }

    /// True if `name` was given in full.
    pub(super) fn names(&self, name: &str) -> bool {
        self.patterns.iter().any(|pattern| pattern == name)
    }

    /// # Errors
    ///
    /// [`Error::UnmatchedPattern`].
    pub(crate) fn check<'a>(&self, names: impl Iterator<Item = &'a str> + Clone) -> Result<()> {
        let lonely = |pattern: &&String| {
            let matcher = WildMatch::new(pattern);
            !names.clone().any(|name| matcher.matches(name))
        };
        match self.patterns.iter().find(lonely) {
            Some(pattern) => Err(unmatched(self.option, pattern, names)),
            None => Ok(()),
        }
    }
}

fn unmatched<'a>(option: &'static str, pattern: &str, names: impl Iterator<Item = &'a str> + Clone) -> Error {
    Error::UnmatchedPattern {
        option,
        pattern: pattern.to_owned(),
        tensors: names.clone().count(),
        first: names.min().unwrap_or_default().to_owned(),
    }
}

type RenameFunction = dyn Fn(&str) -> Option<String> + Send + Sync;

/// From a name of the model to a name of the checkpoint.
enum Rename {
    Prefix { model: String, checkpoint: String },
    Function(Box<RenameFunction>),
}

impl Rename {
    /// `None` if the name is none of this renaming's business.
    fn apply(&self, name: &str) -> Option<String> {
        match self {
            Rename::Prefix { model, checkpoint } => {
                let rest = name.strip_prefix(model.as_str())?;
                // `layer.1` is no prefix of `layer.10.weight`.
                let whole =
                    rest.is_empty() || rest.starts_with('.') || model.is_empty() || model.ends_with('.');
                whole.then(|| format!("{checkpoint}{rest}"))
            }
            Rename::Function(function) => function(name),
        }
    }

    fn text(&self) -> &str {
        match self {
            Rename::Prefix { model, .. } => model,
            Rename::Function(_) => "a function",
        }
    }
}

impl fmt::Debug for Rename {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Rename::Prefix { model, checkpoint } => write!(f, "{model} -> {checkpoint}"),
            Rename::Function(_) => f.write_str("function"),
        }
    }
}

/// # Before the model is built
///
/// Names are those of the model, except where they are said to be the checkpoint's. In patterns `*` stands for any number of characters, dots included, and `?` for one. A
/// pattern that meets no name is an error, reported by [`Params::set`] and [`Params::report`] once the model exists.
impl Params {
    /// Variables that match are new: they start as the model asks (candle's `Init`), whatever the checkpoint holds under
    /// their names, and have no anchor. Values depend on [`Params::seed`] and the name only.
    #[must_use]
    pub fn head(self, pattern: impl Into<String>) -> Self {
        self.registry().options.head.push(pattern);
        self
    }

    /// Tensors that match are constants: no gradient, no anchor. A tensor that also matches a head is trained, so
    /// `.freeze("*").head("classifier.*")` is a linear probe.
    #[must_use]
    pub fn freeze(self, pattern: impl Into<String>) -> Self {
        self.registry().options.freeze.push(pattern);
        self
    }

    /// Tensors that match are neither trained nor anchored, but belong to the model's state: [`Params::buffers`]. Running
    /// statistics of batch norm (`*.running_mean`, `*.running_var`, `*.num_batches_tracked`) always do.
    #[must_use]
    pub fn buffer(self, pattern: impl Into<String>) -> Self {
        self.registry().options.buffer.push(pattern);
        self
    }

    /// Displacements of variables that match are measured from zero.
    #[must_use]
    pub fn zero_anchor(self, pattern: impl Into<String>) -> Self {
        self.registry().options.zero_anchor.push(pattern);
        self
    }

    /// Tensors **of the checkpoint** that match need not be asked for. A model that takes a part of a block (`blocks.3`, an
    /// embedding, a layer) and leaves a tensor of it alone computes something else than the one that was trained: that is
    /// [`Error::LeftOut`] for every such tensor that is not waived here. Poolers, heads and whole blocks may be left out
    /// without a waiver.
    #[must_use]
    pub fn unused(self, pattern: impl Into<String>) -> Self {
        self.registry().options.unused.push(pattern);
        self
    }

    /// What the model calls `model` or `model.…` is called `checkpoint` or `checkpoint.…` in the checkpoint; an empty
    /// `model` stands for every name. The first renaming that applies to a name is taken, and no other. Two names of the
    /// model that lead to one name of the checkpoint share one variable, which has the name that was asked for first.
    ///
    /// ```no_run
    /// # use tpgm_candle::Params;
    /// # let device = candle_core::Device::Cpu;
    /// let params = Params::open("model.safetensors", &device)?
    ///     .rename("lm_head.weight", "model.embed_tokens.weight") // tied
    ///     .rename("", "bert."); // a prefix that the model lacks
    /// # Ok::<(), tpgm_candle::Error>(())
    /// ```
    #[must_use]
    pub fn rename(self, model: impl Into<String>, checkpoint: impl Into<String>) -> Self {
        let rename = Rename::Prefix { model: model.into(), checkpoint: checkpoint.into() };
        self.registry().options.renames.push(rename);
        self
    }

    /// As [`Params::rename`], by a function of the model's name that returns `None` for names it leaves alone.
    #[must_use]
    pub fn rename_with(self, rename: impl Fn(&str) -> Option<String> + Send + Sync + 'static) -> Self {
        self.registry().options.renames.push(Rename::Function(Box::new(rename)));
        self
    }

    /// Element type of the weights, f32 unless told otherwise. Anchors keep the type of the file.
    #[must_use]
    pub fn dtype(self, dtype: DType) -> Self {
        self.registry().options.dtype = dtype;
        self
    }

    /// Seed of the initial values of new variables, 0 unless told otherwise.
    #[must_use]
    pub fn seed(self, seed: u64) -> Self {
        self.registry().options.seed = seed;
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn renamed(model: &str, checkpoint: &str, name: &str) -> Option<String> {
        Rename::Prefix { model: model.into(), checkpoint: checkpoint.into() }.apply(name)
    }

    #[test]
    fn prefixes_end_at_dots() {
        assert_eq!(renamed("layer.1", "block.1", "layer.1.weight").as_deref(), Some("block.1.weight"));
        assert_eq!(renamed("layer.1", "block.1", "layer.10.weight"), None);
        assert_eq!(renamed("layer.", "block.", "layer.10.weight").as_deref(), Some("block.10.weight"));
        assert_eq!(renamed("", "bert.", "pooler.weight").as_deref(), Some("bert.pooler.weight"));
        assert_eq!(renamed("a.weight", "b.weight", "a.weight").as_deref(), Some("b.weight"));
    }

    #[test]
    fn roles() {
        let mut options = Options::default();
        options.freeze.push("*");
        options.head.push("head.*");
        assert_eq!(options.role("body.weight"), Role::Frozen);
        assert_eq!(options.role("head.weight"), Role::Trainable);
        assert_eq!(options.role("head.bn.running_mean"), Role::Buffer);
    }
}
