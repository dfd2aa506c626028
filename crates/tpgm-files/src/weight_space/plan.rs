//! What a merge of checkpoint files does.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use tpgm_core::weight_space::{ModelStock, WiseFt};
use tpgm_core::{DType, FixedRadius};

use super::rename::Rename;

/// The operation of a [`MergePlan`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MergeMethod {
    /// Interpolates between the anchor and one model (WiSE-FT, arXiv 2109.01903).
    Wise {
        /// Share of the fine-tuned model, and the floor of the Fisher information.
        #[serde(default)]
        options: WiseFt,
        /// Checkpoints with the Fisher information of the anchor and of the model, under the names of the weights. A
        /// tensor that neither of them has counts as all ones.
        #[serde(default)]
        fisher: Option<[PathBuf; 2]>,
    },
    /// The mean of any number of models (arXiv 2203.05482). Takes no anchor: give it as a model to have it in.
    UniformSoup,
    /// An average of at least two models, pulled towards the anchor (arXiv 2403.19522).
    ModelStock(ModelStock),
    /// Pulls one model back to a given distance from the anchor (arXiv 2002.08253).
    Project(FixedRadius),
}

/// How checkpoint files are merged; see [`merge_files`](super::merge_files).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MergePlan {
    /// What is computed.
    pub method: MergeMethod,
    /// Patterns (`*`, `?`) of tensors that are taken from the first model as they are, for example a new head. The anchor
    /// and the other models need not have them. Each pattern must match.
    #[serde(default)]
    pub copy: Vec<String>,
    /// Patterns (`*`, `?`) of tensors that are in the output of no model, for example a head of the anchor that fine-tuning
    /// took off. Each pattern must match.
    #[serde(default)]
    pub drop: Vec<String>,
    /// Other names for tensors, in every input; all other patterns are about the new names. Each rule must match.
    #[serde(default)]
    pub rename: Vec<Rename>,
    /// Element type of what is merged. By default the anchor's; without an anchor, the first model's.
    #[serde(default)]
    pub dtype: Option<DType>,
}

impl MergePlan {
    /// A plan without exceptions.
    pub fn new(method: MergeMethod) -> Self {
        Self { method, copy: Vec::new(), drop: Vec::new(), rename: Vec::new(), dtype: None }
    }

    /// Interpolation with the share `alpha` of the fine-tuned model, in `[0, 1]`.
    pub fn wise(alpha: f64) -> Self {
        Self::new(MergeMethod::Wise { options: WiseFt { alpha, ..WiseFt::default() }, fisher: None })
    }

    /// The mean of all models.
    pub fn uniform_soup() -> Self {
        Self::new(MergeMethod::UniformSoup)
    }

    /// Model Stock with its default options.
    pub fn model_stock() -> Self {
        Self::new(MergeMethod::ModelStock(ModelStock::default()))
    }

    /// Projection on a ball around the anchor.
    pub fn project(radius: FixedRadius) -> Self {
        Self::new(MergeMethod::Project(radius))
    }

    /// Takes the tensors that match `pattern` from the first model as they are.
    #[must_use]
    pub fn copy(mut self, pattern: impl Into<String>) -> Self {
        self.copy.push(pattern.into());
        self
    }

    /// Leaves out the tensors that match `pattern`, whichever model has them.
    #[must_use]
    pub fn drop(mut self, pattern: impl Into<String>) -> Self {
        self.drop.push(pattern.into());
        self
    }

    /// Gives tensors other names, in every input. Rules are applied in the order given.
    #[must_use]
    pub fn rename(mut self, rename: Rename) -> Self {
        self.rename.push(rename);
        self
    }

    /// Writes what is merged in this element type.
    #[must_use]
    pub fn dtype(mut self, dtype: DType) -> Self {
        self.dtype = Some(dtype);
        self
    }
}

/// A merged tensor and the numbers that were found on the way.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MergedTensor {
    /// Its name.
    pub name: String,
    /// Model Stock: the share `t` of the mean. Projection: the ratio of the displacement that was kept. One number, or one
    /// per row; empty for the other methods.
    pub coefficients: Vec<f64>,
}

/// How far a pass over a checkpoint file is: see [`merge_files_with`](super::merge_files_with).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FilePass<'a> {
    /// The tensor whose turn it is.
    pub tensor: &'a str,
    /// Tensors that are done.
    pub done: usize,
    /// All tensors.
    pub of: usize,
}
