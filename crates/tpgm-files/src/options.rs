//! How checkpoint files are opened.

use std::fmt;
use std::path::PathBuf;

/// How checkpoint files are opened.
///
/// ```no_run
/// use tpgm_files::{OpenOptions, Source};
///
/// // A run of timm has its weights under `state_dict` and their moving average under `state_dict_ema`.
/// let options = OpenOptions::new().key("state_dict_ema");
/// let source = Source::open(["model_best.pth.tar"], &options)?;
/// # Ok::<(), tpgm_files::Error>(())
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OpenOptions {
    key: Option<String>,
}

impl OpenOptions {
    /// Nothing special: the weights of a PyTorch file are where they plainly are.
    pub fn new() -> Self {
        Self::default()
    }

    /// Names where a PyTorch file keeps the weights; dots lead deeper, `state.model` is `file["state"]["model"]`. Needed
    /// where a file has several sets of weights, or has them under an unusual key; the error lists the keys then. The same
    /// key is looked for in every file that is opened.
    #[must_use]
    pub fn key(mut self, key: impl Into<String>) -> Self {
        self.key = Some(key.into());
        self
    }

    pub(super) fn wanted_key(&self) -> Option<&str> {
        self.key.as_deref()
    }
}

/// Where the weights of a PyTorch file were found.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Chosen {
    /// The file.
    pub file: PathBuf,
    /// The key of the weights, with dots between keys of keys; `None` if the file is nothing but weights.
    pub key: Option<String>,
    /// Other keys with tensors under them, which were left alone.
    pub others: Vec<String>,
}

impl Chosen {
    /// False for a file that is weights and nothing else.
    pub fn says_something(&self) -> bool {
        self.key.is_some() || !self.others.is_empty()
    }
}

impl fmt::Display for Chosen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = match &self.key {
            Some(key) => format!("weights under `{key}`"),
            None => "weights at its top".to_owned(),
        };
        write!(f, "{}: {place}", self.file.display())?;
        match self.others[..] {
            [] => Ok(()),
            _ => write!(f, ", not under `{}`", self.others.join("`, `")),
        }
    }
}
