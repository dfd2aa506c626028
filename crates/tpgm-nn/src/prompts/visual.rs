//! Prompts among the tokens of a vision transformer.

use candle_core::backprop::GradStore;
use candle_core::{DType, IndexOp, Result, Tensor, Var};
use candle_nn::{Init, VarBuilder};
use serde::{Deserialize, Serialize};

use super::{insert_uniform, named};
use crate::dtype::cast;
use crate::error::{Error, Result as OurResult};
use crate::layers::shape_error;
use crate::lora::Factors;

const OP: &str = "visual prompts";

/// The name of the parameter: all prompts, a row each.
const NAME: &str = "prompts";

/// The model that prompts are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct VisualPromptShape {
    /// Its blocks.
    pub layers: usize,
    /// Numbers per token.
    pub width: usize,
    /// Side of a patch in pixels; it only says how large prompts are at first.
    pub patch: usize,
}

impl VisualPromptShape {
    /// Prompts begin uniform in plus and minus this: `sqrt(6 / (3 patch^2 + width))`, as published.
    fn bound(&self) -> f64 {
        (6.0 / (3 * self.patch * self.patch + self.width) as f64).sqrt()
    }
}

/// Where prompts are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Placement {
    /// So many in front of the first block, which go through all of them.
    Shallow(usize),
    /// So many in front of every block. What a block makes of them is dropped.
    Deep(usize),
    /// The block of each prompt; a block may have none. What a block makes of them is dropped.
    Placed(Vec<usize>),
}

/// Prompts of a vision transformer, behind its class token: visual prompt tuning, shallow and deep (VPT, Jia et al., ECCV 2022,
/// arXiv 2203.12119), or each in front of a block of its own (PRO-VPT, arXiv 2503.06901), where
/// [`Relocation`](super::Relocation) may move them.
///
/// They are one parameter, `prompts` of shape (prompts, width), and go into a model through its hook:
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use candle_nn::{VarBuilder, VarMap};
/// use tpgm_nn::DropoutRng;
/// use tpgm_nn::models::vit::{Vit, VitConfig, VitLayout};
/// use tpgm_nn::prompts::{Placement, VisualPromptShape, VisualPrompts};
///
/// let config = VitConfig {
///     hidden_size: 8, intermediate_size: 16, num_hidden_layers: 2, num_attention_heads: 2, image_size: 16,
///     ..VitConfig::base_patch16_224()
/// };
/// let vars = VarMap::new();
/// let vb = VarBuilder::from_varmap(&vars, DType::F32, &Device::Cpu);
/// let model = Vit::with_layout(&config, VitLayout::Timm, &DropoutRng::new(0), vb.pp("model"))?;
/// let shape = VisualPromptShape { layers: 2, width: 8, patch: 16 };
/// let prompts = VisualPrompts::new(shape, Placement::Deep(5), vb)?;
/// let images = Tensor::zeros((1, 3, 16, 16), DType::F32, &Device::Cpu)?;
/// let features = model.forward_with(&images, true, |layer, hidden| prompts.apply(layer, &hidden))?;
/// assert_eq!(features.dims(), [1, 8]);
/// # Ok::<(), tpgm_nn::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct VisualPrompts {
    shape: VisualPromptShape,
    placement: Placement,
    prompts: Tensor,
    /// One per prompt, always 1: its gradient is the score of the prompt. Of placed prompts.
    gates: Option<Var>,
}

impl VisualPrompts {
    /// Takes `prompts` from `vb`, or makes them anew.
    ///
    /// # Errors
    ///
    /// [`Error::Prompts`] for a placement that does not fit the model, or `vb` fails.
    pub fn new(shape: VisualPromptShape, placement: Placement, vb: VarBuilder) -> OurResult<Self> {
        let count = placed(&shape, &placement)?;
        let bound = shape.bound();
        let init = Init::Uniform { lo: -bound, up: bound };
        let prompts = vb.get_with_hints((count, shape.width), NAME, init)?;
        Ok(Self::with_prompts(shape, placement, &prompts)?)
    }

    /// New prompts with the zero anchor, named `NAME.prompts`, of the type and on the device of the base weights. Their first
    /// values depend on `seed` and the name alone.
    ///
    /// # Errors
    ///
    /// [`Error::Prompts`] for a placement that does not fit the model, or there is a parameter of this name.
    pub fn zero_anchored<F: Factors>(
        shape: VisualPromptShape,
        placement: Placement,
        name: &str,
        seed: u64,
        factors: &F,
    ) -> OurResult<Self, F::Error> {
        let count = placed(&shape, &placement)?;
        let rows = [count, shape.width];
        let prompts = insert_uniform(factors, named(name, NAME), &rows, shape.bound(), seed)?;
        Ok(Self::with_prompts(shape, placement, &prompts)?)
    }

    /// Prompts that exist already, of shape (prompts, width): those of a [`Placement::Deep`] block after block.
    ///
    /// # Errors
    ///
    /// [`Error::Prompts`] for a placement that does not fit the model, or another shape.
    pub fn with_prompts(shape: VisualPromptShape, placement: Placement, prompts: &Tensor) -> Result<Self> {
        let count = placed(&shape, &placement)?;
        if prompts.dims() != [count, shape.width] {
            let expected = "the parameter must have the shape (prompts, width) of the placement";
            return Err(shape_error(OP, expected, &[prompts]));
        }
        let gates = match placement {
            Placement::Placed(_) => Some(Var::ones(count, prompts.dtype(), prompts.device())?),
            _ => None,
        };
        Ok(Self { shape, placement, prompts: prompts.clone(), gates })
    }

    /// Where the prompts are; what a run saves beside their values.
    pub fn placement(&self) -> &Placement {
        &self.placement
    }

    /// The model they are for.
    pub fn shape(&self) -> &VisualPromptShape {
        &self.shape
    }

    /// All prompts, of shape (prompts, width).
    pub fn prompts(&self) -> &Tensor {
        &self.prompts
    }

    /// The prompts in front of a block.
    fn of(&self, layer: usize) -> Vec<u32> {
        match &self.placement {
            Placement::Shallow(count) => (0..*count as u32).collect(),
            Placement::Deep(count) => (0..*count).map(|i| (layer * count + i) as u32).collect(),
            Placement::Placed(layers) => {
                (0u32..).zip(layers).filter(|(_, at)| **at == layer).map(|(prompt, _)| prompt).collect()
            }
        }
    }

    /// The hidden state in front of block `layer`, of shape (batch, tokens, width), with the prompts that it is to have behind
    /// its first token, and without those of the block before. Behind the last block, `layer` being their number, there are
    /// none.
    ///
    /// # Errors
    ///
    /// A block that the model has not, or a hidden state of another shape.
    pub fn apply(&self, layer: usize, hidden: &Tensor) -> Result<Tensor> {
        let VisualPromptShape { layers, width, .. } = self.shape;
        if layer > layers {
            candle_core::bail!("{OP}: there is no block {layer}; they are for a model of {layers}")
        }
        let shallow = matches!(self.placement, Placement::Shallow(_));
        if shallow && 0 < layer && layer < layers {
            return Ok(hidden.clone());
        }
        let before = if layer == 0 { 0 } else { self.of(layer - 1).len() };
        let &[batch, tokens, size] = hidden.dims() else {
            return Err(shape_error(OP, "hidden states have the shape (batch, tokens, width)", &[hidden]));
        };
        if size != width || tokens < 1 + before {
            let expected =
                "the hidden state must have the prompts' width, a class token, and the prompts before it";
            return Err(shape_error(OP, expected, &[hidden, &self.prompts]));
        }
        let (class, rest) = (hidden.narrow(1, 0, 1)?, hidden.narrow(1, 1 + before, tokens - 1 - before)?);
        let now = if layer < layers { self.of(layer) } else { Vec::new() };
        if now.is_empty() {
            return Tensor::cat(&[&class, &rest], 1);
        }
        let count = now.len();
        let which = Tensor::from_vec(now, count, self.prompts.device())?;
        let mut prompts = self.prompts.index_select(&which, 0)?;
        if let Some(gates) = &self.gates {
            prompts = prompts.broadcast_mul(&gates.index_select(&which, 0)?.unsqueeze(1)?)?;
        }
        let prompts = cast(&prompts, hidden.dtype())?.unsqueeze(0)?.broadcast_as((batch, count, width))?;
        Tensor::cat(&[&class, &prompts, &rest], 1)
    }

    /// How much the loss would fall if each prompt were weakened: the gradient of the loss by its gate (PRO-VPT). A prompt with
    /// the largest score above 0 is idle, or does harm.
    ///
    /// # Errors
    ///
    /// [`Error::Prompts`] unless prompts are placed, or the loss did not see them.
    pub fn scores(&self, grads: &GradStore) -> OurResult<Vec<f64>> {
        let problem = |problem: &str| Error::Prompts { problem: problem.to_owned() };
        let gates = self
            .gates
            .as_ref()
            .ok_or_else(|| problem("only prompts with `Placement::Placed` have scores"))?;
        let grad = grads.get(gates).ok_or_else(|| {
            problem("the loss has no gradient of their gates: give them to the model in its hook")
        })?;
        Ok(grad.to_dtype(DType::F64)?.to_vec1()?)
    }

    /// Moves a placed prompt in front of another block, and multiplies it by `shrink`.
    ///
    /// # Errors
    ///
    /// [`Error::Prompts`] unless prompts are placed, the prompt and the block exist, and the parameter is a variable.
    pub fn relocate(&mut self, prompt: usize, layer: usize, shrink: f64) -> OurResult<()> {
        let problem = |problem: String| Err(Error::Prompts { problem });
        let layers = self.shape.layers;
        let Placement::Placed(places) = &mut self.placement else {
            return problem("only prompts with `Placement::Placed` can be moved".to_owned());
        };
        if prompt >= places.len() {
            return problem(format!("there is no prompt {prompt}; there are {}", places.len()));
        }
        if layer >= layers {
            return problem(format!("there is no block {layer}; they are for a model of {layers}"));
        }
        if !self.prompts.is_variable() {
            return problem("they are no variable, so none of them can be changed".to_owned());
        }
        let var = Var::from_tensor(&self.prompts)?;
        let row = (self.prompts.i(prompt..prompt + 1)?.detach() * shrink)?;
        var.set(&self.prompts.detach().copy()?.slice_scatter0(&row, prompt)?)?;
        places[prompt] = layer;
        Ok(())
    }
}

/// How many prompts a placement has, if it fits the model.
fn placed(shape: &VisualPromptShape, placement: &Placement) -> OurResult<usize> {
    let problem = |problem: String| Err(Error::Prompts { problem });
    let VisualPromptShape { layers, width, .. } = *shape;
    if layers == 0 || width == 0 {
        return problem(format!(
            "a model of {layers} blocks and {width} numbers per token has no place for them"
        ));
    }
    let count = match placement {
        Placement::Shallow(count) => *count,
        Placement::Deep(count) => count.saturating_mul(layers),
        Placement::Placed(places) => {
            if let Some((prompt, layer)) = places.iter().enumerate().find(|(_, layer)| **layer >= layers) {
                return problem(format!(
                    "prompt {prompt} is placed in front of block {layer}, but there are {layers}"
                ));
            }
            places.len()
        }
    };
    match count {
        0 => problem("there are none; leave them out instead".to_owned()),
        count if u32::try_from(count).is_err() => problem(format!("{count} are too many")),
        count => Ok(count),
    }
}
