//! The layers that a block can ask for.

use candle_core::{D, DType, Module, ModuleT, Result, Tensor, TensorId};

use super::{Keep, Tape, Value, trace};
use crate::layers::activation::{self, Activation};
use crate::layers::bias_activation::BiasActivation;
use crate::layers::check::Path;
use crate::layers::convert::{Cast, Scale};
use crate::layers::fused::{Custom, apply1, apply2};
use crate::layers::gated::GatedSilu;
use crate::layers::gpu::laid_out;
use crate::layers::linear::{Affine, Linear};
use crate::layers::norm::{AddNorm, AnyNorm};
use crate::layers::product::Product;
use crate::layers::sum::{ScaleFeatures, Sum};
use crate::layers::{Dropout, gated_silu};

impl Tape {
    /// True if the block is one operation.
    pub(super) fn records(&self) -> bool {
        self.record.is_some()
    }

    /// [`Linear`].
    pub(crate) fn linear(&mut self, x: &Value, layer: &Linear) -> Result<Value> {
        if !self.records() {
            return layer.forward(&x.0).map(Value);
        }
        layer.check(&x.0)?;
        let Some(bias) = layer.bias() else { return self.product_with(x, layer) };
        let (x, weight) = (x.0.contiguous()?, layer.weight().contiguous()?);
        match weight.track_op() || bias.track_op() {
            true => self.fused(Affine, [&x, &weight, bias], Keep::Arguments),
            false => self.frozen(&x, &weight, Some(bias)),
        }
    }

    /// A linear layer that is not trained. The gradient of its input needs the weight alone, so the input is not kept.
    fn frozen(&mut self, x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Value> {
        let y = match bias {
            None => Custom(Affine).run([x, weight])?,
            Some(bias) => Custom(Affine).run([x, weight, &bias.contiguous()?])?,
        };
        let args: Vec<Tensor> = [x, weight].into_iter().chain(bias).cloned().collect();
        trace::note("linear", &args, &[&y]);
        if y.track_op() {
            let record = self.record.as_mut().expect("it records");
            record.note(&args, &[&y], &[]);
            let (of, shape, weight) = (x.id(), x.dims().to_vec(), weight.clone());
            record.push(&[&y], move |grads| {
                let [Some(grad)] = grads else { return Ok(vec![]) };
                let rows: usize = shape[..shape.len() - 1].iter().product();
                let grad = grad.reshape((rows, weight.dim(0)?))?;
                let of_x = Custom(Product { transposed: false }).run([&grad, &weight])?;
                Ok(vec![(of, of_x.reshape(shape.as_slice())?)])
            });
        }
        Ok(Value(y))
    }

    /// `x W^T` without the layer's bias.
    fn product_with(&mut self, x: &Value, layer: &Linear) -> Result<Value> {
        let (x, weight) = (x.0.contiguous()?, layer.weight().contiguous()?);
        match (self.records(), weight.track_op()) {
            (true, true) => self.fused(Affine, [&x, &weight], Keep::Arguments),
            (true, false) => self.frozen(&x, &weight, None),
            (false, _) => apply2(Affine, &x, &weight).map(Value),
        }
    }

    /// An activation of what a layer gives, with its bias inside.
    pub(crate) fn activated(&mut self, x: &Value, layer: &Linear, activation: Activation) -> Result<Value> {
        layer.check(&x.0)?;
        match (layer.bias(), Path::with_kernels(&x.0)) {
            (Some(bias), Path::Fused) => {
                let y = self.product_with(x, layer)?;
                let op = BiasActivation(activation);
                match self.records() {
                    true => self.fused(op, [&y.0, bias], Keep::Arguments),
                    false => apply2(op, &y.0, bias).map(Value),
                }
            }
            _ => {
                let y = self.linear(x, layer)?;
                match self.records() {
                    true => self.fused(activation, [&y.0], Keep::Arguments),
                    false => activation::apply(activation, &y.0).map(Value),
                }
            }
        }
    }

    /// [`LayerNorm`](crate::LayerNorm) or [`RmsNorm`](crate::RmsNorm).
    pub(crate) fn norm<'a>(&mut self, x: &Value, norm: impl Into<AnyNorm<'a>>) -> Result<Value> {
        let norm = norm.into();
        if !self.records() {
            return norm.forward(&x.0).map(Value);
        }
        norm.op.path(&x.0, norm.weight, norm.bias)?;
        match norm.bias {
            None => self.fused(norm.op, [&x.0, norm.weight], Keep::Arguments),
            Some(bias) => self.fused(norm.op, [&x.0, norm.weight, bias], Keep::Arguments),
        }
    }

    /// `x + y` and its norm: what a residual connection leads to.
    pub(crate) fn add_norm<'a>(
        &mut self,
        x: &Value,
        y: &Value,
        norm: impl Into<AnyNorm<'a>>,
    ) -> Result<[Value; 2]> {
        let norm = norm.into();
        if !self.records() {
            let sum = self.add(x, y)?;
            let normed = norm.forward(&sum.0)?;
            return Ok([sum, Value(normed)]);
        }
        norm.op.path(&x.0, norm.weight, norm.bias)?;
        same_shape("add-norm", &x.0, &y.0)?;
        let (x, y) = (x.0.contiguous()?, y.0.contiguous()?);
        let (weight, bias) = (norm.weight.contiguous()?, norm.bias.map(Tensor::contiguous).transpose()?);
        let op = norm.op;
        let both = AddNorm { op, weight: &weight, bias: bias.as_ref() };
        let [sum, normed] = both.forward(&x, &y)?;
        let args: Vec<Tensor> = [&x, &y, &weight].into_iter().chain(&bias).cloned().collect();
        trace::note("add-norm", &args, &[&sum, &normed]);
        if normed.track_op() {
            let record = self.record.as_mut().expect("it records");
            record.note(&args, &[&sum, &normed], std::slice::from_ref(&sum));
            let wanted: Vec<Option<TensorId>> =
                args.iter().map(|arg| arg.track_op().then(|| arg.id())).collect();
            let kept = sum.clone();
            record.push(&[&sum, &normed], move |grads| {
                let [carried, grad] = grads else { return Ok(vec![]) };
                let both = AddNorm { op, weight: &weight, bias: bias.as_ref() };
                let carried = carried.as_ref().map(Tensor::contiguous).transpose()?;
                let [of_sum, of_weight, of_bias] = match grad {
                    Some(grad) => both.backward(&kept, carried.as_ref(), &grad.contiguous()?)?,
                    None => [carried, None, None],
                };
                let found = [of_sum.clone(), of_sum, of_weight, of_bias];
                Ok(wanted.iter().zip(found).filter_map(|(id, found)| Some(((*id)?, found?))).collect())
            });
        }
        Ok([Value(sum), Value(normed)])
    }

    /// `x + y`, of one shape.
    pub(crate) fn add(&mut self, x: &Value, y: &Value) -> Result<Value> {
        same_shape("add", &x.0, &y.0)?;
        match (self.records(), Path::with_kernels(&x.0)) {
            (true, _) => self.fused(Sum, [&x.0, &y.0], Keep::Nothing),
            (false, Path::Fused) => apply2(Sum, &x.0, &y.0).map(Value),
            (false, Path::Composed) => (&x.0 + &y.0).map(Value),
        }
    }

    /// [`Dropout`].
    pub(crate) fn dropout(&mut self, x: &Value, dropout: &Dropout, train: bool) -> Result<Value> {
        if !self.records() {
            return dropout.forward_t(&x.0, train).map(Value);
        }
        match dropout.drops(train) {
            true => self.fused(dropout.draw(), [&x.0.contiguous()?], Keep::Nothing),
            false => Ok(x.clone()),
        }
    }

    /// `x` times one factor for each feature.
    pub(crate) fn factors(&mut self, x: &Value, factors: &Tensor) -> Result<Value> {
        match self.records() {
            true => self.fused(ScaleFeatures, [&x.0, factors], Keep::Arguments),
            false => x.0.broadcast_mul(factors).map(Value),
        }
    }

    /// [`gated_silu`].
    pub(crate) fn gated_silu(&mut self, gate: &Value, up: &Value) -> Result<Value> {
        match self.records() {
            true => self.fused(GatedSilu, [&gate.0, &up.0], Keep::Arguments),
            false => gated_silu(&gate.0, &up.0).map(Value),
        }
    }

    /// `gated_silu` of the first half of the columns and the second.
    pub(crate) fn gated_halves(&mut self, x: &Value) -> Result<Value> {
        let half = x.0.dim(D::Minus1)? / 2;
        let part = move |x: &Tensor, i: usize| x.narrow(D::Minus1, i * half, half);
        if !self.records() {
            return gated_silu(&part(&x.0, 0)?, &part(&x.0, 1)?).map(Value);
        }
        // One step of the tape over the halves of one tensor: their gradients lie beside each other again. The tensor is kept alone:
        // its halves, which the CPU copies out, would hold it beside them.
        let halves =
            move |x: &Tensor| Result::Ok([laid_out(true, &part(x, 0)?)?, laid_out(true, &part(x, 1)?)?]);
        let op = Custom(GatedSilu);
        let y = op.run(halves(&x.0)?.each_ref())?;
        trace::note("gated-silu", std::slice::from_ref(&x.0), &[&y]);
        if y.track_op() {
            let record = self.record.as_mut().expect("it records");
            record.note(std::slice::from_ref(&x.0), &[&y], &[]);
            let x = x.0.clone();
            record.push(&[&y], move |grads| {
                let [Some(grad)] = grads else { return Ok(vec![]) };
                let found = op.backward(halves(&x)?.each_ref(), grad, grad)?;
                let [Some(gate), Some(up)] = found else { return Ok(vec![]) };
                Ok(vec![(x.id(), Tensor::cat(&[gate, up], D::Minus1)?)])
            });
        }
        Ok(Value(y))
    }

    /// Another element type.
    pub(crate) fn cast(&mut self, x: &Value, to: DType) -> Result<Value> {
        match (x.0.dtype() == to, self.records()) {
            (true, _) => Ok(x.clone()),
            (false, true) => self.fused(Cast { to, from: x.0.dtype() }, [&x.0], Keep::Nothing),
            (false, false) => x.0.to_dtype(to).map(Value),
        }
    }

    /// `x` times a number.
    pub(crate) fn scale(&mut self, x: &Value, factor: f64) -> Result<Value> {
        match (self.records(), Path::with_kernels(&x.0)) {
            (true, _) => self.fused(Scale(factor), [&x.0], Keep::Nothing),
            (false, Path::Fused) => apply1(Scale(factor), &x.0).map(Value),
            (false, Path::Composed) => x.0.affine(factor, 0.0).map(Value),
        }
    }

    /// Its element type.
    pub(crate) fn dtype(&self, x: &Value) -> DType {
        x.0.dtype()
    }

    /// The same elements in another shape.
    pub(crate) fn reshape(&mut self, x: &Value, shape: &[usize]) -> Result<Value> {
        let y = x.0.reshape(shape)?;
        let Some(record) = self.record.as_mut().filter(|_| y.track_op()) else { return Ok(Value(y)) };
        // `y` shares the memory of `x`, which another step may keep, so it is noted as kept: its memory stays where it is.
        record.note(std::slice::from_ref(&x.0), &[&y], std::slice::from_ref(&y));
        let (of, before) = (x.0.id(), x.0.shape().clone());
        record.push(&[&y], move |grads| match grads {
            [Some(grad)] => Ok(vec![(of, grad.reshape(&before)?)]),
            _ => Ok(vec![]),
        });
        Ok(Value(y))
    }
}

fn same_shape(op: &'static str, x: &Tensor, y: &Tensor) -> Result<()> {
    crate::layers::check::same_kind(op, &[x, y])?;
    match x.dims() == y.dims() {
        true => Ok(()),
        false => Err(crate::layers::check::shape_error(op, "both must have one shape", &[x, y])),
    }
}
