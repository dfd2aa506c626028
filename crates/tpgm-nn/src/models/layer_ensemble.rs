//! Predictions from several depths of a large network beside a small one.

use candle_core::{D, Module, Result, Tensor};
use candle_nn::{Init, VarBuilder};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result as OurResult};
use crate::layers::{Linear, linear, shape_error, softmax_last_dim};

/// What the parts of a [`LayerEnsemble`] count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Shares {
    /// All the same.
    #[default]
    Uniform,
    /// Learned: the softmax of `shares`, which begins at 0, so all the same at first.
    Learned,
}

/// Adapting layers over a large pre-trained network and a small one trained from scratch (LEVI, arXiv 2402.04644, in our
/// reading: the authors published no code):
///
/// `logits = sum_l c_l A_l [h_l; s]`,
///
/// with `h_l` the features of block `l` of the large network, `s` those of the small one, `A_l` a linear layer, and `c_l` the
/// [`Shares`]. Whether the authors learn `c`, and whether they train every part on its own too, is not known; here the sum has
/// one loss.
///
/// Its parameters are `adapters.0.weight` of shape (classes, features of `h_0` and of `s`), `adapters.0.bias` and so on, and
/// `shares`. Features of blocks come from a hook ([hidden states](crate::models#hidden-states)), one vector per sample: of a
/// transformer the class token, of a ResNet the mean over the image. Both networks may be frozen, constrained or free.
#[derive(Debug, Clone)]
pub struct LayerEnsemble {
    adapters: Vec<Linear>,
    shares: Option<Tensor>,
    features: Vec<usize>,
    small: usize,
}

impl LayerEnsemble {
    /// One adapting layer for each of `features`: the widths of the large network's vectors. `small` is the width of the small
    /// network's. Takes the parameters from `vb`, or makes them anew.
    ///
    /// # Errors
    ///
    /// [`Error::ModelConfig`] without any, or `vb` fails.
    pub fn new(
        features: &[usize],
        small: usize,
        classes: usize,
        shares: Shares,
        vb: VarBuilder,
    ) -> OurResult<Self> {
        if features.is_empty() {
            let problem = "an ensemble needs at least one block to look at".to_owned();
            return Err(Error::ModelConfig { entry: "features", problem });
        }
        let adapters = vb.pp("adapters");
        let adapters = features
            .iter()
            .enumerate()
            .map(|(i, features)| linear(features + small, classes, adapters.pp(i)));
        let shares = match shares {
            Shares::Uniform => None,
            Shares::Learned => Some(vb.get_with_hints(features.len(), "shares", Init::Const(0.0))?),
        };
        Ok(Self { adapters: adapters.collect::<Result<_>>()?, shares, features: features.to_vec(), small })
    }

    /// Logits of shape (batch, classes), from vectors of the large network's blocks, each (batch, its features), in the order of
    /// [`LayerEnsemble::new`], and the small network's, (batch, small).
    ///
    /// # Errors
    ///
    /// Another number of vectors, or shapes that do not fit.
    pub fn forward(&self, large: &[Tensor], small: &Tensor) -> Result<Tensor> {
        const OP: &str = "layer ensemble";
        if large.len() != self.adapters.len() {
            candle_core::bail!("{OP}: {} vectors for {} adapting layers", large.len(), self.adapters.len())
        }
        let batch = small.dims().first().copied().unwrap_or(0);
        if small.dims() != [batch, self.small] {
            return Err(shape_error(OP, "the small network's features must have its width", &[small]));
        }
        let mut parts = Vec::with_capacity(large.len());
        for ((adapter, features), vector) in self.adapters.iter().zip(&self.features).zip(large) {
            if vector.dims() != [batch, *features] {
                let expected = "each block's features must be one vector per sample of the small network's, of its width";
                return Err(shape_error(OP, expected, &[vector, small]));
            }
            parts.push(adapter.forward(&Tensor::cat(&[vector, small], 1)?)?);
        }
        let parts = Tensor::stack(&parts, D::Minus1)?;
        match &self.shares {
            None => parts.mean(D::Minus1),
            Some(shares) => {
                parts.broadcast_mul(&softmax_last_dim(&shares.unsqueeze(0)?)?.unsqueeze(0)?)?.sum(D::Minus1)
            }
        }
    }
}
