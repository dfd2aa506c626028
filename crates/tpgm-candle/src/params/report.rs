//! What became of a checkpoint.

use std::collections::{BTreeSet, HashSet};
use std::fmt;
use std::path::PathBuf;

use super::blocks::Blocks;
use super::error::{Error, Result};
use super::registry::{Origin, Registry};
use super::{Params, Role};
use crate::files::Chosen;

/// Where the model's tensors came from, and what the checkpoint has beyond them. All names are sorted; `Display` gives
/// a summary for people.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Report {
    /// The files.
    pub files: Vec<PathBuf>,
    /// Of PyTorch files that hold more than weights: the key that the weights were found under.
    pub chosen: Vec<Chosen>,
    /// Trainable parameters with values of the checkpoint, or that were made outside.
    pub loaded: Vec<String>,
    /// New variables, under a head.
    pub fresh: Vec<String>,
    /// Of these, the ones that hold nothing but zeros: usual for a bias, a mistake for most weights.
    pub fresh_zero: Vec<String>,
    /// Constants.
    pub frozen: Vec<String>,
    /// Buffers, loaded or new.
    pub buffers: Vec<String>,
    /// Names of the model that share a variable with another name: (name, name of the variable).
    pub tied: Vec<(String, String)>,
    /// Tensors of the checkpoint, by its names, in whose place a head started anew.
    pub replaced: Vec<String>,
    /// Tensors of the checkpoint, by its names, that the model did not ask for. Counters and other buffers are not
    /// listed: candle's layers never read them.
    pub unused: Vec<String>,
}

impl Params {
    /// Sums up where the model's tensors came from. Call it once the model is built.
    ///
    /// # Errors
    ///
    /// [`Error::UnmatchedPattern`] if an option's pattern met no name; [`Error::LeftOut`] for a tensor of the checkpoint
    /// inside a block that the model loaded, for which it did not ask; or the device fails.
    pub fn report(&self) -> Result<Report> {
        let registry = self.registry();
        self.check(&registry)?;
        let chosen = self.source.chosen().iter().filter(|chosen| chosen.says_something());
        let mut report = Report {
            files: self.source.paths().map(PathBuf::from).collect(),
            chosen: chosen.cloned().collect(),
            ..Report::default()
        };
        let mut used = BTreeSet::new();
        for (name, origin) in &registry.origins {
            match origin {
                Origin::Loaded { key } => used.extend(self.source.storage(key)),
                Origin::Fresh { replaces: Some(key) } => report.replaced.push(key.clone()),
                Origin::Fresh { replaces: None } | Origin::Given => {}
                Origin::Tied { to, key } => {
                    used.extend(self.source.storage(key));
                    report.tied.push((name.clone(), to.clone()));
                    continue;
                }
            }
            let list = match registry.constants.get(name) {
                Some((Role::Buffer, _)) => &mut report.buffers,
                Some(_) => &mut report.frozen,
                None if matches!(origin, Origin::Fresh { .. }) => &mut report.fresh,
                None => &mut report.loaded,
            };
            list.push(name.clone());
        }
        for name in &report.fresh {
            let largest = match registry.tensor(name) {
                Some(tensor) if tensor.elem_count() > 0 => {
                    tensor.to_dtype(candle_core::DType::F64)?.abs()?.max_all()?.to_scalar::<f64>()?
                }
                _ => continue,
            };
            if largest == 0.0 {
                report.fresh_zero.push(name.clone());
            }
        }
        report.replaced.sort_unstable();
        used.extend(report.replaced.iter().map(String::as_str));
        report.unused = self
            .source
            .names()
            .filter(|name| !self.source.storage(name).is_some_and(|storage| used.contains(storage)))
            .filter(|name| registry.options.role(name) != Role::Buffer)
            .map(str::to_owned)
            .collect();
        Ok(report)
    }

    /// Now that the model is there: every pattern must have met a name, and no block of the checkpoint may have been taken in
    /// part.
    pub(super) fn check(&self, registry: &Registry) -> Result<()> {
        let options = &registry.options;
        options.check(registry.origins.keys().map(String::as_str), self.source.names())?;
        let (mut blocks, mut used) = (Blocks::default(), HashSet::new());
        for origin in registry.origins.values() {
            match origin {
                Origin::Loaded { key } | Origin::Tied { key, .. } => {
                    blocks.take(key);
                    used.extend(self.source.storage(key));
                }
                Origin::Fresh { replaces: Some(storage) } => used.extend([storage.as_str()]),
                Origin::Fresh { replaces: None } | Origin::Given => {}
            }
        }
        let left_out = |name: &&str| {
            let waived =
                options.unused.matches(name) || options.head.matches(name) || options.buffer.matches(name);
            let used = self.source.storage(name).is_some_and(|storage| used.contains(storage));
            let shape = self.source.shape(name).unwrap_or_default();
            !waived && !used && blocks.miss(name, shape, self.source.is_float(name))
        };
        let tensors: Vec<String> = self.source.names().filter(left_out).map(str::to_owned).collect();
        match tensors.first().and_then(|first| self.source.path(first)) {
            None => Ok(()),
            Some(path) => Err(Error::LeftOut { path: path.to_owned(), tensors }),
        }
    }
}

impl Report {
    /// # Errors
    ///
    /// [`Error::UnusedTensors`] if the checkpoint has tensors that the model did not ask for.
    pub fn require_all_used(&self) -> Result<()> {
        match self.unused[..] {
            [] => Ok(()),
            _ => Err(Error::UnusedTensors { tensors: self.unused.clone() }),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let files: Vec<String> = self.files.iter().map(|file| file.display().to_string()).collect();
        match files[..] {
            [] => writeln!(f, "no checkpoint")?,
            _ => writeln!(f, "from {}", files.join(", "))?,
        }
        for chosen in &self.chosen {
            writeln!(f, "{chosen}")?;
        }
        let mut line = |label: &str, names: &[String]| match names {
            [] => Ok(()),
            _ => writeln!(f, "{label:>9} {:>4}  {}", names.len(), shortened(names)),
        };
        let tied: Vec<String> = self.tied.iter().map(|(name, to)| format!("{name} = {to}")).collect();
        line("loaded", &self.loaded)?;
        line("new", &self.fresh)?;
        line("all zero", &self.fresh_zero)?;
        line("frozen", &self.frozen)?;
        line("buffers", &self.buffers)?;
        line("tied", &tied)?;
        line("replaced", &self.replaced)?;
        line("unused", &self.unused)
    }
}

/// How many names a line of the report shows.
const SHOWN: usize = 4;

fn shortened(names: &[String]) -> String {
    let shown = names.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ");
    if names.len() > SHOWN { shown + ", …" } else { shown }
}
