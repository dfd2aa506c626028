//! The backbone of `domainnet_mini`: a small residual network, all of whose work is matrix products. Its [images](data) are
//! those of `family_mini`, too.
//!
//! ```text
//! image 32 x 32   windows of 8 x 8 pixels at stride 4      -> 8 x 8 tokens of 192
//! stem            linear                                   -> 8 x 8 x 32
//! 2 blocks        x + linear(relu(conv3x3(norm(x))))
//! merge           2 x 2 tokens beside each other, linear   -> 4 x 4 x 96
//! 2 blocks
//! norm, mean over tokens                                   -> 96 features
//! head            linear                                   -> classes
//! ```

pub mod data;
mod neighbors;

use candle_core::{Module, Result, Tensor};
use candle_nn::VarBuilder;
use tpgm_candle::nn::{LayerNorm, Linear, layer_norm, relu};

pub use self::neighbors::neighbors;

/// Width and height of an image in pixels.
pub const SIDE: usize = 32;
/// Pixels between two windows of the stem.
pub const STRIDE: usize = 4;
/// Width and height of such a window.
pub const WINDOW: usize = 8;
/// Tokens per row and column behind the stem.
pub const TOKENS: usize = SIDE / STRIDE;
/// Width of the two stages.
const WIDTHS: [usize; 2] = [32, 96];
/// Blocks of each stage.
const BLOCKS: usize = 2;
/// Epsilon of the layer norms.
const EPS: f64 = 1e-5;

/// Prefix of the names of the head's tensors.
pub const HEAD: &str = "head";

/// Features that the head sees.
pub const FEATURES: usize = WIDTHS[1];

/// Made anew as by candle-nn: so were the committed weights.
fn linear(inputs: usize, outputs: usize, vb: VarBuilder) -> Result<Linear> {
    Ok(candle_nn::linear(inputs, outputs, vb)?.into())
}

struct Block {
    norm: LayerNorm,
    conv: Linear,
    out: Linear,
}

impl Block {
    fn new(width: usize, vb: VarBuilder) -> Result<Self> {
        Ok(Self {
            norm: layer_norm(width, EPS, vb.pp("norm"))?,
            conv: linear(9 * width, width, vb.pp("conv"))?,
            out: linear(width, width, vb.pp("out"))?,
        })
    }

    /// Of `[images, side, side, width]`.
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        // Without changes of shape, each of which costs the backward pass a cleared tensor and an addition.
        let hidden = relu(&self.conv.forward(&neighbors(&self.norm.forward(x)?)?)?)?;
        x + self.out.forward(&hidden)?
    }
}

/// The network.
pub struct Backbone {
    stem: Linear,
    blocks: Vec<Block>,
    merge: Linear,
    norm: LayerNorm,
    head: Linear,
}

impl Backbone {
    /// Asks `vb` for every tensor.
    ///
    /// # Errors
    ///
    /// `vb` has no tensor of a name, or of another shape.
    pub fn new(classes: usize, vb: VarBuilder) -> Result<Self> {
        let [narrow, wide] = WIDTHS;
        let blocks = (0..2 * BLOCKS)
            .map(|block| Block::new(WIDTHS[block / BLOCKS], vb.pp(format!("blocks.{block}"))))
            .collect::<Result<_>>()?;
        Ok(Self {
            stem: linear(WINDOW * WINDOW * 3, narrow, vb.pp("stem"))?,
            blocks,
            merge: linear(4 * narrow, wide, vb.pp("merge"))?,
            norm: layer_norm(wide, EPS, vb.pp("norm"))?,
            head: linear(FEATURES, classes, vb.pp(HEAD))?,
        })
    }

    /// Features of a batch of windows, `[images * TOKENS * TOKENS, 3 * WINDOW * WINDOW]`, `[images, FEATURES]`.
    pub fn features(&self, windows: &Tensor) -> Result<Tensor> {
        let images = windows.dim(0)? / (TOKENS * TOKENS);
        let [narrow, wide] = WIDTHS;
        let mut x = self.stem.forward(windows)?.reshape((images, TOKENS, TOKENS, narrow))?;
        let (first, second) = self.blocks.split_at(BLOCKS);
        for block in first {
            x = block.forward(&x)?;
        }
        let half = TOKENS / 2;
        let merged = x
            .reshape((images, half, 2, half, 2 * narrow))?
            .transpose(2, 3)?
            .reshape((images * half * half, 4 * narrow))?;
        x = self.merge.forward(&merged)?.reshape((images, half, half, wide))?;
        for block in second {
            x = block.forward(&x)?;
        }
        self.norm.forward(&x)?.reshape((images, half * half, wide))?.mean(1)
    }

    /// Class scores of features, `[images, classes]`.
    pub fn classify(&self, features: &Tensor) -> Result<Tensor> {
        self.head.forward(features)
    }

    /// Class scores of a batch of windows.
    pub fn forward(&self, windows: &Tensor) -> Result<Tensor> {
        self.classify(&self.features(windows)?)
    }
}
