//! Convolutions one after the other as one operation of candle.

use std::marker::PhantomData;

use candle_core::{Result, Storage, Tensor};
use tpgm_core::Element;

use super::chain::{Around, Chain, Kept, Layer, Wanted};
use super::layout::Order;
use super::sizes::Sizes;
use super::step::Step;
use crate::layers::conv_norm::ConvActivation;
use crate::layers::float::Float;
use crate::layers::links::{Many, apply_many};
use crate::layers::storage::{Operand, by_dtype, into_storage, into_tensor, round, widen};

/// A convolution and what follows it.
#[derive(Debug)]
pub(crate) struct Part {
    pub(crate) sizes: Sizes,
    pub(crate) weight: Tensor,
    pub(crate) norm: Option<Norm>,
    pub(crate) activation: ConvActivation,
}

/// A norm with given statistics: `(x - mean) * scale * weight + bias`.
#[derive(Debug)]
pub(crate) struct Norm {
    pub(crate) weight: Tensor,
    pub(crate) bias: Tensor,
    pub(crate) mean: Vec<f64>,
    /// One over the standard deviation.
    pub(crate) scale: Vec<f64>,
}

/// Several of them, and what goes around them: if it is a layer, that is the last part.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) layers: Vec<Part>,
    pub(crate) around: Around,
    /// What follows the sum.
    pub(crate) activation: ConvActivation,
    /// Those of the input and the result.
    pub(crate) orders: [Order; 2],
}

/// Convolves images `x`. Sizes and element types were checked.
pub(crate) fn convolve(name: &'static str, x: &Tensor, parts: Parts) -> Result<Tensor> {
    let Parts { layers: parts, around, activation, orders } = parts;
    let x = x.contiguous()?;
    let mut args = vec![x.clone()];
    let mut layers = vec![];
    for part in parts {
        args.push(part.weight.contiguous()?);
        let norm = part.norm.map(|norm| {
            args.extend([norm.weight, norm.bias]);
            (norm.mean, norm.scale)
        });
        layers.push((part.sizes, norm, part.activation));
    }
    let keep = args.iter().any(Tensor::track_op);
    let last = layers.last().map(|(sizes, ..)| *sizes).expect("there is a convolution");
    let [height, width] = last.axes.map(|axis| axis.out);
    let shape = orders[1].shape(x.dims()[0], last.outputs, height, width);
    let x_data = Operand::new(name, &x);
    let x_slice = x_data.slice()?;
    by_dtype!(x_slice.dtype(), T, C => {
        let (layers, norms) = build::<C>(name, &args, layers)?;
        let chain = Chain::new(layers, around, activation, orders, x.dims()[0]);
        let (y, kept) = chain.forward::<T>(x_slice, keep);
        let op = Convolutions { name, chain, kept, norms, element: PhantomData::<T> };
        drop(x_data);
        apply_many(op, args, (Storage::Cpu(into_storage(T::buffer(y))), shape))
    })
}

/// Mean and scale of a norm, and the factor of each output that they and the norm's weight make.
#[derive(Debug)]
struct Fold {
    mean: Vec<f64>,
    scale: Vec<f64>,
    factor: Vec<f64>,
}

/// Layers, and of each the norm that was folded.
type Folded<C> = (Vec<Layer<C>>, Vec<Option<Fold>>);

type Described = (Sizes, Option<(Vec<f64>, Vec<f64>)>, ConvActivation);

/// The layers with their norms folded into weights and shifts. `args` are the input, and for each layer its weight, and weight and
/// bias of its norm.
fn build<C: Float>(name: &'static str, args: &[Tensor], layers: Vec<Described>) -> Result<Folded<C>> {
    let mut rest = args[1..].iter();
    let mut next = || rest.next().map(|arg| Operand::new(name, arg)).expect("there is an argument for each");
    let (mut built, mut norms) = (vec![], vec![]);
    for (sizes, norm, activation) in layers {
        let weight = next();
        let weight = widen::<C>(weight.slice()?);
        let (weight, shift, fold) = match norm {
            None => (sizes.fold(&weight, |_| C::ONE), vec![], None),
            Some((mean, scale)) => {
                let (gamma, beta) = (next(), next());
                let (gamma, beta) = (gamma.slice()?, beta.slice()?);
                let factor: Vec<f64> =
                    scale.iter().enumerate().map(|(i, scale)| scale * gamma.get(i)).collect();
                let shift =
                    (0..sizes.outputs).map(|i| C::from_f64(beta.get(i) - mean[i] * factor[i])).collect();
                let folded = sizes.fold(&weight, |output| C::from_f64(factor[output]));
                (folded, shift, Some(Fold { mean, scale, factor }))
            }
        };
        built.push(Layer { step: Step::new(sizes, weight), shift, activation });
        norms.push(fold);
    }
    Ok((built, norms))
}

struct Convolutions<T, C> {
    name: &'static str,
    chain: Chain<C>,
    kept: Kept<C>,
    norms: Vec<Option<Fold>>,
    element: PhantomData<T>,
}

impl<T: Element, C: Float> Many for Convolutions<T, C> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn backward(&self, args: &[Tensor], y: &Tensor, grad: &Tensor) -> Result<Vec<Option<Tensor>>> {
        // Where the arguments of each layer start.
        let mut starts = vec![];
        let mut start = 1;
        for norm in &self.norms {
            starts.push(start);
            start += if norm.is_some() { 3 } else { 1 };
        }
        let tracked = |i: usize| args[i].track_op();
        let wanted: Vec<Wanted> = starts
            .iter()
            .zip(&self.norms)
            .map(|(&i, norm)| match norm {
                None => Wanted { weight: tracked(i), shift: false },
                Some(_) => {
                    Wanted { weight: tracked(i) || tracked(i + 1), shift: tracked(i + 1) || tracked(i + 2) }
                }
            })
            .collect();
        let [x_data, y_data, grad_data] = [&args[0], y, grad].map(|tensor| Operand::new(self.name, tensor));
        let (x, y, grad) = (x_data.slice()?, y_data.slice()?, grad_data.slice()?);
        let (dx, sums) = self.chain.backward::<T>(x, &self.kept, y, grad, tracked(0), &wanted);
        let mut grads = vec![None; args.len()];
        grads[0] = dx.map(|dx| into_tensor(T::buffer(dx), args[0].shape())).transpose()?;
        let sizes = self.chain.sizes();
        for (layer, ((sizes, norm), i)) in sizes.zip(&self.norms).zip(starts).enumerate() {
            let mut products = vec![];
            if wanted[layer].weight {
                let weight = Operand::new(self.name, &args[i]);
                let weight = widen::<C>(weight.slice()?);
                let factor = |output: usize| norm.as_ref().map_or(1.0, |norm| norm.factor[output]);
                let parts: Vec<&[C]> = sums.iter().map(|sums| sums[layer].weight.as_slice()).collect();
                let (dw, of_outputs) = sizes.unfold::<T, C>(&parts, &weight, factor);
                products = of_outputs;
                grads[i] = Some(into_tensor(T::buffer(dw), args[i].shape())?);
            }
            let Some(norm) = norm else { continue };
            let mut shifts = vec![0.0; sizes.outputs];
            for sums in &sums {
                shifts.iter_mut().zip(&sums[layer].shift).for_each(|(total, x)| *total += x);
            }
            let parameter = |values: &[f64], i: usize| into_tensor(T::buffer(round(values)), args[i].shape());
            if tracked(i + 1) {
                // The factor is scale * gamma, and the shift beta - mean * factor.
                let gamma = products.iter().zip(&shifts).zip(norm.mean.iter().zip(&norm.scale));
                let gamma: Vec<f64> =
                    gamma.map(|((product, shift), (mean, scale))| scale * (product - mean * shift)).collect();
                grads[i + 1] = Some(parameter(&gamma, i + 1)?);
            }
            if tracked(i + 2) {
                grads[i + 2] = Some(parameter(&shifts, i + 2)?);
            }
        }
        Ok(grads)
    }
}
