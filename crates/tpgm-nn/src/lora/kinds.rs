//! How each kind of layer is adapted.

use candle_core::{Module, Result, Tensor};
use candle_nn::{Conv2d, Conv2dConfig};

use super::layer::ZeroFactor;
use super::layer::sealed::Layer;
use super::names;

/// Linear layers: candle's and ours have the same constructor and getters.
macro_rules! linear {
    ($($linear:ty),*) => {$(
        impl Layer for $linear {
            const NAMES: [&'static str; 2] = names::LAYER;
            const DROPS_INPUT: bool = true;

            fn weight(&self) -> &Tensor {
                self.weight()
            }

            fn with_weight(&self, weight: Tensor) -> Self {
                Self::new(weight, self.bias().cloned())
            }

            fn shapes(&self, rank: usize) -> Result<[Vec<usize>; 2]> {
                let (outputs, inputs) = self.weight().dims2()?;
                Ok([vec![rank, inputs], vec![outputs, rank]])
            }

            fn zero_factor() -> ZeroFactor {
                ZeroFactor::B
            }

            fn adapt(&self, xs: &Tensor, a: &Tensor, b: &Tensor, scaling: f64) -> Result<Tensor> {
                let inner = Self::new(a.clone(), None).forward(xs)?.affine(scaling, 0.0)?;
                Self::new(b.clone(), None).forward(&inner)
            }

            fn delta(&self, a: &Tensor, b: &Tensor) -> Result<Tensor> {
                b.matmul(a)
            }
        }
    )*};
}

linear!(candle_nn::Linear, crate::layers::Linear);

impl Layer for Conv2d {
    const NAMES: [&'static str; 2] = names::LAYER;
    const DROPS_INPUT: bool = true;

    fn weight(&self) -> &Tensor {
        self.weight()
    }

    fn with_weight(&self, weight: Tensor) -> Self {
        Conv2d::new(weight, self.bias().cloned(), *self.config())
    }

    fn shapes(&self, rank: usize) -> Result<[Vec<usize>; 2]> {
        let (outputs, inputs, height, width) = self.weight().dims4()?;
        Ok([vec![rank, inputs, height, width], vec![outputs, rank, 1, 1]])
    }

    fn zero_factor() -> ZeroFactor {
        ZeroFactor::B
    }

    /// A's filters see the channels of each group in turn, and B mixes what they give for that group into its outputs: so
    /// the update of every group is B's rows times A, and can be merged.
    fn adapt(&self, xs: &Tensor, a: &Tensor, b: &Tensor, scaling: f64) -> Result<Tensor> {
        let groups = self.config().groups;
        let a = if groups == 1 { a.clone() } else { a.repeat((groups, 1, 1, 1))? };
        let inner = Conv2d::new(a, None, *self.config()).forward(xs)?.affine(scaling, 0.0)?;
        let mix = Conv2dConfig { groups, ..Conv2dConfig::default() };
        Conv2d::new(b.clone(), None, mix).forward(&inner)
    }

    fn delta(&self, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        let product = b.flatten_from(1)?.matmul(&a.flatten_from(1)?)?;
        product.reshape(self.weight().shape())
    }
}

/// Embeddings: candle's, which is told its width, and ours.
macro_rules! embedding {
    ($($embedding:ty, |$table:ident, $width:ident| $made:expr;)*) => {$(
        impl Layer for $embedding {
            const NAMES: [&'static str; 2] = names::EMBEDDING;
            const DROPS_INPUT: bool = false;

            fn weight(&self) -> &Tensor {
                self.embeddings()
            }

            fn with_weight(&self, $table: Tensor) -> Self {
                let $width = self.embeddings().dims().last().copied().unwrap_or(0);
                $made
            }

            fn shapes(&self, rank: usize) -> Result<[Vec<usize>; 2]> {
                let (entries, width) = self.embeddings().dims2()?;
                Ok([vec![rank, entries], vec![width, rank]])
            }

            fn zero_factor() -> ZeroFactor {
                ZeroFactor::A
            }

            fn adapt(&self, ids: &Tensor, a: &Tensor, b: &Tensor, scaling: f64) -> Result<Tensor> {
                let mut shape = ids.dims().to_vec();
                shape.push(b.dim(0)?);
                // Columns of A, so that A is never transposed as a whole.
                let inner = a.index_select(&ids.flatten_all()?, 1)?.affine(scaling, 0.0)?;
                inner.t()?.matmul(&b.t()?)?.reshape(shape)
            }

            fn delta(&self, a: &Tensor, b: &Tensor) -> Result<Tensor> {
                b.matmul(a)?.t()?.contiguous()
            }
        }
    )*};
}

embedding! {
    candle_nn::Embedding, |table, width| Self::new(table, width);
    crate::layers::Embedding, |table, _width| Self::new(table);
}
