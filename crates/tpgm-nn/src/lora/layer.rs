//! A layer with a low-rank update.

use candle_core::{Module, ModuleT, Tensor, Var};
use candle_nn::{Conv2d, Embedding, Linear};

use super::config::LoraConfig;
use super::factors::Factors;
use crate::dtype::{candle_dtype, cast, core_dtype};
use crate::error::{Error, Result};
use crate::layers::{Dropout, DropoutRng, Tape, Value};
use crate::random::SplitMix64;

/// Layers that LoRA can adapt: [`Linear`], [`Conv2d`] and [`Embedding`] of candle-nn, [`crate::Linear`] and [`crate::Embedding`].
pub trait Adaptable: Module + Clone + sealed::Layer {}

impl<L: Module + Clone + sealed::Layer> Adaptable for L {}

pub(super) mod sealed {
    use candle_core::{Result, Tensor};

    /// The kinds of layers; implemented beside each of them.
    pub trait Layer: Sized {
        /// The ends of the names of the factors.
        const NAMES: [&'static str; 2];
        /// Whether dropout applies to the input of the adapter.
        const DROPS_INPUT: bool;
        fn weight(&self) -> &Tensor;
        /// The same layer with another weight.
        fn with_weight(&self, weight: Tensor) -> Self;
        /// Shapes of A and B.
        fn shapes(&self, rank: usize) -> Result<[Vec<usize>; 2]>;
        /// Which factor starts at zero, so that the adapted layer starts as its base.
        fn zero_factor() -> super::ZeroFactor;
        /// The update's part of the output. Differentiable. Scales what lies between the factors, which is small.
        fn adapt(&self, xs: &Tensor, a: &Tensor, b: &Tensor, scaling: f64) -> Result<Tensor>;
        /// What `adapt` adds to the weight with a scaling of 1, in the shape of the weight.
        fn delta(&self, a: &Tensor, b: &Tensor) -> Result<Tensor>;
    }
}

/// Which factor is zero at first; the other one is random as in PEFT.
pub enum ZeroFactor {
    /// Embeddings: A is zero, B standard normal.
    A,
    /// Others: B is zero, A uniform within `1 / sqrt(elements of one row)` (Kaiming uniform with `a = sqrt(5)`).
    B,
}

/// A linear layer with a low-rank update: `y = x W^T + bias + scaling * x A^T B^T`.
pub type LoraLinear = Lora<Linear>;

/// A convolution with a low-rank update: `y = conv(x, W) + bias + scaling * conv(conv(x, A), B)`.
pub type LoraConv2d = Lora<Conv2d>;

/// An embedding with a low-rank update: `y = W[ids] + scaling * A^T[ids] B^T`.
pub type LoraEmbedding = Lora<Embedding>;

/// A layer and, if it is adapted, its low-rank update. See the [module](super) for shapes and names.
///
/// [`Lora::forward`] evaluates; [`ModuleT::forward_t`] with `train = true` also drops elements of the adapter's input.
/// Clones share the factors.
#[derive(Debug, Clone)]
pub struct Lora<L> {
    base: L,
    factors: Option<Pair>,
    merged: Option<L>,
}

#[derive(Debug, Clone)]
struct Pair {
    a: Var,
    b: Var,
    scaling: f64,
    dropout: Dropout,
    name: String,
}

impl<L: Adaptable> Lora<L> {
    /// Adapts `base`, the module called `name`, whether or not it is a target, and hands its new factors to `factors`. The
    /// base weight should be frozen.
    ///
    /// The factors are on the device of the base weight, in f32, or in f64 if it is f64. Their initial values depend on
    /// the seed, their names and their shapes.
    ///
    /// # Errors
    ///
    /// An option outside its range, an error of `factors` if the module is adapted already, [`Error::ElementType`], or the
    /// device fails.
    pub fn new<F: Factors>(base: L, name: &str, config: &LoraConfig, factors: &F) -> Result<Self, F::Error> {
        config.validate()?;
        let weight = base.weight();
        let compute = core_dtype(weight.dtype())
            .ok_or_else(|| Error::ElementType { tensor: name.to_owned(), dtype: weight.dtype() })?;
        // Factors of half-precision layers are f32: small steps of theirs would be rounded away.
        let dtype = candle_dtype(compute.compute());
        let shapes = base.shapes(config.rank)?;
        let zero = match L::zero_factor() {
            ZeroFactor::A => 0,
            ZeroFactor::B => 1,
        };
        let mut vars = Vec::with_capacity(2);
        for (which, (end, shape)) in L::NAMES.iter().zip(shapes).enumerate() {
            let full = format!("{name}.{end}");
            let values = initial(&full, &shape, which == zero, L::zero_factor(), config.seed);
            let values = cast(&Tensor::from_vec(values, shape, weight.device())?, dtype)?;
            let var = Var::from_tensor(&values)?;
            factors.insert(full, var.clone())?;
            vars.push(var);
        }
        let b = vars.pop().expect("two factors");
        let a = vars.pop().expect("two factors");
        let masks = DropoutRng::new(SplitMix64::named(config.seed, &format!("{name}.dropout")).next_u64());
        let dropout = Dropout::new(config.dropout, &masks)?;
        let factors = Pair { a, b, scaling: config.scaling(), dropout, name: name.to_owned() };
        Ok(Self { base, factors: Some(factors), merged: None })
    }

    /// Draws the masks of dropout from `rng`, which a model's layers share and a checkpoint saves. Without this call the
    /// masks depend on the seed and the module's name, and start over in a new process.
    ///
    /// # Errors
    ///
    /// None for a layer that exists: its probability was checked.
    pub fn dropout_rng(mut self, rng: &DropoutRng) -> Result<Self> {
        if let Some(factors) = &mut self.factors {
            factors.dropout = Dropout::new(factors.dropout.probability(), rng)?;
        }
        Ok(self)
    }

    /// `base` as it is: what a module gets that is no target.
    pub fn plain(base: L) -> Self {
        Self { base, factors: None, merged: None }
    }

    /// The layer without its update.
    pub fn base(&self) -> &L {
        &self.base
    }

    /// True if the layer has an update.
    pub fn is_adapted(&self) -> bool {
        self.factors.is_some()
    }

    /// True between [`Lora::merge`] and [`Lora::unmerge`].
    pub fn is_merged(&self) -> bool {
        self.merged.is_some()
    }

    /// The output in evaluation: without dropout.
    ///
    /// # Errors
    ///
    /// Shapes, types or devices do not fit.
    pub fn forward(&self, xs: &Tensor) -> candle_core::Result<Tensor> {
        match &self.merged {
            Some(merged) => merged.forward(xs),
            None => self.adapted(xs, false),
        }
    }

    fn adapted(&self, xs: &Tensor, train: bool) -> candle_core::Result<Tensor> {
        let output = self.base.forward(xs)?;
        let Some(factors) = &self.factors else { return Ok(output) };
        let dtype = factors.a.dtype();
        let update = if L::DROPS_INPUT {
            let xs = xs.to_dtype(dtype)?;
            let xs = factors.dropout.forward_t(&xs, train)?;
            self.base.adapt(&xs, &factors.a, &factors.b, factors.scaling)?
        } else {
            self.base.adapt(xs, &factors.a, &factors.b, factors.scaling)?
        };
        (output.to_dtype(dtype)? + update)?.to_dtype(output.dtype())
    }

    /// The weight that gives the same outputs without an update: `W + scaling * delta`, added in the type of the factors
    /// and rounded to the type of `W`. A new tensor, without gradient.
    ///
    /// # Errors
    ///
    /// The device fails.
    pub fn merged_weight(&self) -> Result<Tensor> {
        let weight = self.base.weight().detach();
        let Some(factors) = &self.factors else { return Ok(weight.copy()?) };
        let delta =
            self.base.delta(&factors.a.detach(), &factors.b.detach())?.affine(factors.scaling, 0.0)?;
        Ok((weight.to_dtype(delta.dtype())? + delta)?.to_dtype(weight.dtype())?)
    }

    /// Computes with the merged weight from now on, at the cost of the base layer. The base weight is kept (twice the
    /// memory meanwhile), so that [`Lora::unmerge`] restores it bit for bit. The factors are not watched: merge again
    /// after they change.
    ///
    /// # Errors
    ///
    /// The device fails.
    pub fn merge(&mut self) -> Result<()> {
        if self.factors.is_some() {
            self.merged = Some(self.base.with_weight(self.merged_weight()?));
        }
        Ok(())
    }

    /// Goes back to the base weight, whose bits never changed, and the update beside it.
    pub fn unmerge(&mut self) {
        self.merged = None;
    }

    /// The plain layer with the merged weight, for inference or for saving.
    ///
    /// # Errors
    ///
    /// The device fails.
    pub fn into_merged(self) -> Result<L> {
        match &self.factors {
            Some(_) => Ok(self.base.with_weight(self.merged_weight()?)),
            None => Ok(self.base),
        }
    }

    /// Writes the merged weight to a variable of another model or map, of the shape and type of the weight.
    ///
    /// # Errors
    ///
    /// [`Error::MergeIntoBase`] if `var` is the base weight of this layer, whose update would then count twice; or the
    /// shape or type differ.
    pub fn merge_into(&self, var: &Var) -> Result<()> {
        if shares_storage(var, self.base.weight()) {
            let module = self.factors.as_ref().map(|factors| factors.name.clone()).unwrap_or_default();
            return Err(Error::MergeIntoBase { module });
        }
        Ok(var.set(&self.merged_weight()?)?)
    }
}

impl Lora<crate::layers::Linear> {
    /// [`ModuleT::forward_t`] in a block.
    pub(crate) fn in_block(&self, tape: &mut Tape, x: &Value, train: bool) -> candle_core::Result<Value> {
        let factors = match (&self.merged, &self.factors) {
            (Some(_), Some(factors)) if train => {
                return Err(Error::MergedInTraining { module: factors.name.clone() }.into());
            }
            (Some(merged), _) => return tape.linear(x, merged),
            (None, None) => return tape.linear(x, &self.base),
            (None, Some(factors)) => factors,
        };
        let factor = |var: &Var| crate::layers::Linear::new(var.as_tensor().clone(), None);
        let output = tape.linear(x, &self.base)?;
        let (compute, stored) = (factors.a.dtype(), tape.dtype(&output));
        let x = tape.cast(x, compute)?;
        let x = tape.dropout(&x, &factors.dropout, train)?;
        let inner = tape.linear(&x, &factor(&factors.a))?;
        let inner = tape.scale(&inner, factors.scaling)?;
        let update = tape.linear(&inner, &factor(&factors.b))?;
        let output = tape.cast(&output, compute)?;
        let sum = tape.add(&output, &update)?;
        tape.cast(&sum, stored)
    }
}

impl<L: Adaptable> ModuleT for Lora<L> {
    fn forward_t(&self, xs: &Tensor, train: bool) -> candle_core::Result<Tensor> {
        match (&self.merged, &self.factors) {
            // A merged layer passes its factors by: they would silently stay as they are.
            (Some(_), Some(factors)) if train => {
                Err(Error::MergedInTraining { module: factors.name.clone() }.into())
            }
            (Some(merged), _) => merged.forward(xs),
            (None, _) => self.adapted(xs, train),
        }
    }
}

fn initial(name: &str, shape: &[usize], zero: bool, kind: ZeroFactor, seed: u64) -> Vec<f64> {
    let len = shape.iter().product();
    if zero {
        return vec![0.0; len];
    }
    let mut random = SplitMix64::named(seed, name);
    match kind {
        ZeroFactor::A => (0..len).map(|_| random.normal()).collect(),
        ZeroFactor::B => {
            let bound = 1.0 / (shape[1..].iter().product::<usize>().max(1) as f64).sqrt();
            (0..len).map(|_| bound * (2.0 * random.uniform() - 1.0)).collect()
        }
    }
}

fn shares_storage(a: &Tensor, b: &Tensor) -> bool {
    // Not two locks at a time: both may be the same lock.
    let address = |tensor: &Tensor| std::ptr::from_ref(&*tensor.storage_and_layout().0).addr();
    address(a) == address(b)
}
