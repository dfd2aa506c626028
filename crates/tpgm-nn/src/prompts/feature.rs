//! Prompts that are added to features.

use candle_core::{Module, Result, Tensor};
use candle_nn::{Init, VarBuilder};

use super::{insert_uniform, named};
use crate::error::{Error, Result as OurResult};
use crate::layers::{Linear, linear, matmul, shape_error, softmax_last_dim};
use crate::lora::Factors;

/// A vector that is added to the features of every node (GPF, "Universal Prompt Tuning for Graph Neural Networks", NeurIPS
/// 2023, arXiv 2209.15240): `x + p`. It goes to the embedded features, in front of the first layer; the network behind it may
/// be frozen.
///
/// Its parameter is `prompt`, of shape (1, width).
#[derive(Debug, Clone)]
pub struct FeaturePrompt {
    prompt: Tensor,
}

/// First values are uniform within this of 0: `sqrt(6 / (rows + width))` (Glorot and Bengio, 2010), as published.
fn bound(rows: usize, width: usize) -> f64 {
    (6.0 / (rows + width).max(1) as f64).sqrt()
}

fn glorot(rows: usize, width: usize) -> Init {
    let bound = bound(rows, width);
    Init::Uniform { lo: -bound, up: bound }
}

impl FeaturePrompt {
    /// Takes `prompt` from `vb`, or makes it anew.
    ///
    /// # Errors
    ///
    /// `vb` fails.
    pub fn new(width: usize, vb: VarBuilder) -> Result<Self> {
        Ok(Self { prompt: vb.get_with_hints((1, width), "prompt", glorot(1, width))? })
    }

    /// A new prompt with the zero anchor, named `NAME.prompt`, of the type and on the device of the base weights. Its first
    /// values depend on `seed` and the name alone.
    ///
    /// # Errors
    ///
    /// There is a parameter of this name.
    pub fn zero_anchored<F: Factors>(
        width: usize,
        name: &str,
        seed: u64,
        factors: &F,
    ) -> OurResult<Self, F::Error> {
        let name = named(name, "prompt");
        Ok(Self { prompt: insert_uniform(factors, name, &[1, width], bound(1, width), seed)? })
    }

    /// Features of shape (..., width) with the prompt.
    ///
    /// # Errors
    ///
    /// Features of another width.
    pub fn forward(&self, features: &Tensor) -> Result<Tensor> {
        if features.dims().last() != self.prompt.dims().last() {
            let expected = "features must have the prompt's width";
            return Err(shape_error("feature prompt", expected, &[features, &self.prompt]));
        }
        features.broadcast_add(&self.prompt)
    }
}

/// A vector for every node, mixed from `K` (GPF-plus, arXiv 2209.15240): `x + sum_k softmax(A x + b)_k p_k`.
///
/// Its parameters are `basis` of shape (K, width), and `score.weight` of shape (K, width) with `score.bias`. The authors take 5
/// to 20 vectors.
#[derive(Debug, Clone)]
pub struct FeaturePromptBasis {
    basis: Tensor,
    score: Linear,
}

impl FeaturePromptBasis {
    /// Takes the parameters from `vb`, or makes them anew.
    ///
    /// # Errors
    ///
    /// `vb` fails, or a basis of no vectors.
    pub fn new(width: usize, vectors: usize, vb: VarBuilder) -> OurResult<Self> {
        at_least_one(vectors)?;
        let basis = vb.get_with_hints((vectors, width), "basis", glorot(vectors, width))?;
        Ok(Self { basis, score: linear(width, vectors, vb.pp("score"))? })
    }

    /// A new basis with the zero anchor; all three parameters are named `NAME.` and as above, of the type and on the device of
    /// the base weights. Their first values depend on `seed` and the names alone.
    ///
    /// # Errors
    ///
    /// There is a parameter of one of the names, or a basis of no vectors.
    pub fn zero_anchored<F: Factors>(
        width: usize,
        vectors: usize,
        name: &str,
        seed: u64,
        factors: &F,
    ) -> OurResult<Self, F::Error> {
        at_least_one(vectors)?;
        let new = |parameter: &str, shape: &[usize], bound: f64| {
            insert_uniform(factors, named(name, parameter), shape, bound, seed)
        };
        let basis = new("basis", &[vectors, width], bound(vectors, width))?;
        // As linear layers begin.
        let of_score = (width.max(1) as f64).sqrt().recip();
        let weight = new("score.weight", &[vectors, width], of_score)?;
        let bias = new("score.bias", &[vectors], of_score)?;
        Ok(Self { basis, score: Linear::new(weight, Some(bias)) })
    }

    /// Features of shape (nodes, width) with their prompts.
    ///
    /// # Errors
    ///
    /// Features of another shape.
    pub fn forward(&self, features: &Tensor) -> Result<Tensor> {
        if features.rank() != 2 || features.dims()[1] != self.basis.dims()[1] {
            let expected = "features must have the shape (nodes, width of the basis)";
            return Err(shape_error("feature prompt basis", expected, &[features, &self.basis]));
        }
        let shares = softmax_last_dim(&self.score.forward(features)?)?;
        features + matmul(&shares, &self.basis)?
    }
}

fn at_least_one(vectors: usize) -> OurResult<()> {
    match vectors {
        0 => Err(Error::Prompts { problem: "a basis needs at least one vector".to_owned() }),
        _ => Ok(()),
    }
}
