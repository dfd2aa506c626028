//! Attention in a block.

use candle_core::{D, DType, Result, Tensor};

use super::{Keep, Tape, Value, trace};
use crate::layers::check::Path;
use crate::layers::fused::{Custom, apply1};
use crate::layers::heads::{MergeHeads, SplitHeads};
use crate::layers::product::Product;
use crate::layers::rotary::{rope, rotation};
use crate::layers::scores::{AttentionMask, Scores};
use crate::layers::{Dropout, matmul, matmul_transposed};

impl Tape {
    /// From (batch, length, heads * width) to (batch, heads, length, width).
    pub(crate) fn split_heads(&mut self, x: &Value, heads: usize) -> Result<Value> {
        let op = SplitHeads { heads, parts: 1, part: 0 };
        match (self.records(), Path::with_kernels(&x.0)) {
            (true, _) => self.fused(op, [&x.0], Keep::Nothing),
            (false, Path::Fused) => apply1(op, &x.0).map(Value),
            (false, Path::Composed) => {
                let (batch, length, width) = op.sizes(x.0.shape())?;
                let split = x.0.reshape((batch, length, heads, width))?.transpose(1, 2)?.contiguous()?;
                Ok(Value(split))
            }
        }
    }

    /// [`Tape::split_heads`] of query, key and value that lie in a row one behind the other.
    pub(crate) fn split_joined(&mut self, x: &Value, heads: usize) -> Result<[Value; 3]> {
        let size = x.0.dim(D::Minus1)? / 3;
        if !self.records() {
            let mut part = |i: usize| {
                let part = Value(x.0.narrow(D::Minus1, i * size, size)?);
                self.split_heads(&part, heads)
            };
            return Ok([part(0)?, part(1)?, part(2)?]);
        }
        let x = x.0.contiguous()?;
        let part = |part| Custom(SplitHeads { heads, parts: 3, part }).run([&x]);
        let parts = [part(0)?, part(1)?, part(2)?];
        trace::note("split-heads", std::slice::from_ref(&x), &parts.each_ref());
        if x.track_op() {
            let record = self.record.as_mut().expect("it records");
            record.note(std::slice::from_ref(&x), &parts.each_ref(), &[]);
            let (of, shape) = (x.id(), parts[0].shape().clone());
            record.push(&parts.each_ref(), move |grads| {
                let Some(some) = grads.iter().flatten().next() else { return Ok(vec![]) };
                let part = |i: usize| match &grads[i] {
                    Some(grad) => grad.contiguous(),
                    None => Tensor::zeros(&shape, some.dtype(), some.device()),
                };
                let merged = Custom(MergeHeads { heads }).run([&part(0)?, &part(1)?, &part(2)?])?;
                Ok(vec![(of, merged)])
            });
        }
        Ok(parts.map(Value))
    }

    /// From (batch, heads, length, width) to (batch, length, heads * width).
    pub(crate) fn merge_heads(&mut self, x: &Value) -> Result<Value> {
        let (batch, heads, length, width) = x.0.dims4()?;
        match (self.records(), Path::with_kernels(&x.0)) {
            (true, _) => self.fused(MergeHeads { heads }, [&x.0], Keep::Nothing),
            (false, Path::Fused) => apply1(MergeHeads { heads }, &x.0).map(Value),
            (false, Path::Composed) => {
                let merged = x.0.transpose(1, 2)?.contiguous()?.reshape((batch, length, heads * width))?;
                Ok(Value(merged))
            }
        }
    }

    /// [`rope`](crate::rope), of constant angles.
    pub(crate) fn rope(&mut self, x: &Value, [cos, sin]: [&Tensor; 2]) -> Result<Value> {
        match self.records() {
            true => self.fused(rotation(&x.0, cos, sin)?, [&x.0], Keep::Nothing),
            false => rope(&x.0, cos, sin).map(Value),
        }
    }

    fn product(&mut self, x: &Value, y: &Value, transposed: bool) -> Result<Value> {
        match (self.records(), transposed) {
            (true, _) => self.fused(Product { transposed }, [&x.0, &y.0], Keep::Arguments),
            (false, true) => matmul_transposed(&x.0, &y.0).map(Value),
            (false, false) => matmul(&x.0, &y.0).map(Value),
        }
    }

    /// `softmax(q k^T / sqrt(width) + mask) v`, dropped out between. `query` has the shape (batch, heads, queries, width), key and
    /// value (batch, groups, keys, width), where heads that share a group's lie one behind the other. Returns (batch, queries, heads *
    /// width).
    pub(crate) fn attention(
        &mut self,
        [query, key, value]: [&Value; 3],
        mask: Option<&AttentionMask>,
        dropout: &Dropout,
        train: bool,
    ) -> Result<Value> {
        let (batch, heads, queries, width) = query.0.dims4()?;
        let (groups, keys) = (key.0.dim(1)?, key.0.dim(2)?);
        // The queries that share a key are rows of one matrix, so that no key or value is repeated.
        let rows = heads / groups.max(1) * queries;
        let query = self.reshape(query, &[batch, groups, rows, width])?;
        let scale = (width as f64).powf(-0.5);
        // Where the scores are scaled by an operation of its own, queries are fewer. In f16 the products of what is not scaled may
        // be infinite.
        let first = query.0.dtype() == DType::F16 || Scores::path(&query.0, mask) == Path::Composed;
        let (query, scale) = if first { (self.scale(&query, scale)?, 1.0) } else { (query, scale) };
        let scores = self.product(&query, key, true)?;
        let weights = match (self.records(), Scores::path(&scores.0, mask)) {
            (true, _) => {
                let op = Scores::new(&scores.0, heads, queries, scale, AttentionMask::parts(mask))?;
                self.fused(op, [&scores.0], Keep::Result)?
            }
            (false, Path::Fused) => Value(apply1(
                Scores::new(&scores.0, heads, queries, scale, AttentionMask::parts(mask))?,
                &scores.0,
            )?),
            (false, Path::Composed) => Value(Scores::composed(&scores.0, heads, queries, mask)?),
        };
        // Its shape is that of (batch, heads, queries, keys) to dropout, whose masks follow the elements in their order.
        debug_assert_eq!(weights.dims().last(), Some(&keys));
        let weights = self.dropout(&weights, dropout, train)?;
        let mixed = self.product(&weights, value, false)?;
        let mixed = self.reshape(&mixed, &[batch, heads, queries, width])?;
        self.merge_heads(&mixed)
    }
}

/// Attention alone, layer by layer: of `query` of shape (batch, queries, size), `key` and `value` of (batch, keys, size).
pub(crate) fn attend([query, key, value]: [&Tensor; 3], heads: usize) -> Result<Tensor> {
    let mut tape = Tape { record: None };
    let mut split = |x: &Tensor| tape.split_heads(&Value(x.clone()), heads);
    let [query, key, value] = [split(query)?, split(key)?, split(value)?];
    Ok(tape.attention([&query, &key, &value], None, &Dropout::never(), false)?.0)
}
