//! What moves or adds numbers and computes nothing else, and products of batches: by candle's own operations on its memory, in one
//! launch each where they have one.

use candle_core::backend::{BackendDevice, BackendStorage};
use candle_core::{Layout, Result, Tensor};

use super::{Fresh, Home, Input, Lock};
use crate::layers::fused::Fused;
use crate::layers::heads::{MergeHeads, SplitHeads};
use crate::layers::product::Product;
use crate::layers::sum::Sum;

pub(in crate::layers) fn sum<H: Home>(_: &Sum, [x, y]: [Input<'_, H>; 2]) -> Result<Fresh<H>> {
    let storage = x.storage.binary_impl::<candle_core::op::Add>(y.storage, x.layout, y.layout)?;
    Ok(Fresh { storage, shape: x.shape().clone() })
}

/// As the rows of a layout lie, one behind the other.
fn written_out<H: Home>(storage: &H::Storage, layout: &Layout) -> Result<H::Storage> {
    let mut out = Fresh::<H>::beside(storage, layout.shape().clone(), storage.dtype())?.storage;
    storage.copy_strided_src(&mut out, 0, layout)?;
    Ok(out)
}

pub(in crate::layers) fn split_heads<H: Home>(op: &SplitHeads, [x]: [Input<'_, H>; 1]) -> Result<Fresh<H>> {
    let (batch, length, width) = op.sizes(x.shape())?;
    let row = op.heads * width;
    let part = x.layout.narrow(2, op.part * row, row)?;
    // Rows may have gaps, which are the steps to the next token and to the next sequence.
    let [to_sequence, to_token, _] = *part.stride() else {
        candle_core::bail!("split-heads takes tokens of shape (batch, length, size)")
    };
    let shape = (batch, op.heads, length, width);
    let layout = Layout::new(shape.into(), vec![to_sequence, width, to_token, 1], part.start_offset());
    Ok(Fresh { storage: written_out::<H>(x.storage, &layout)?, shape: shape.into() })
}

pub(in crate::layers) fn merge_heads<H: Home, const N: usize>(
    _: &MergeHeads,
    args: [Input<'_, H>; N],
) -> Result<Fresh<H>> {
    let (batch, heads, length, width) = args[0].shape().dims4()?;
    let (rows, row) = (batch * length, heads * width);
    let shape = (batch, length, N * row);
    let merged = |arg: &Input<'_, H>| written_out::<H>(arg.storage, &arg.layout.transpose(1, 2)?);
    if let [arg] = &args[..] {
        return Ok(Fresh { storage: merged(arg)?, shape: shape.into() });
    }
    let mut out = Fresh::<H>::beside(args[0].storage, shape, args[0].dtype())?;
    for (part, arg) in args.iter().enumerate() {
        merged(arg)?.copy2d(&mut out.storage, rows, row, row, N * row, 0, part * row)?;
    }
    Ok(out)
}

/// The product of the matrices in the last two dimensions, of each those transposed that are to be.
pub(in crate::layers) fn product<H: Home>(
    op: &Product,
    [x, y]: [&Input<'_, H>; 2],
    transposed: [bool; 2],
) -> Result<Fresh<H>> {
    let matrices = |input: &Input<'_, H>, transposed: bool| {
        let Some((start, _)) = input.layout.contiguous_offsets() else {
            return Err(candle_core::Error::RequiresContiguous { op: Fused::<2>::name(op) }.bt());
        };
        let (leading, last) = input.layout.dims().split_at(input.layout.dims().len() - 2);
        let layout =
            Layout::contiguous_with_offset((leading.iter().product::<usize>(), last[0], last[1]), start);
        if transposed { layout.transpose(1, 2) } else { Ok(layout) }
    };
    let (of_x, of_y) = (matrices(x, transposed[0])?, matrices(y, transposed[1])?);
    let (batch, m, k, n) = (of_x.dims()[0], of_x.dims()[1], of_x.dims()[2], of_y.dims()[2]);
    let mut shape = x.shape().dims().to_vec();
    let rank = shape.len();
    shape[rank - 2..].copy_from_slice(&[m, n]);
    // cuBLAS refuses what has no elements.
    let storage = match batch * m * n * k {
        0 => x.storage.device().zeros_impl(&(batch, m, n).into(), x.dtype())?,
        _ => x.storage.matmul(y.storage, (batch, m, n, k), &of_x, &of_y)?,
    };
    Ok(Fresh { storage, shape: shape.into() })
}

/// The gradients of both factors, of those that want one.
pub(in crate::layers) fn product_gradients<H: Home>(
    op: &Product,
    on: &H,
    [x, y]: [&Tensor; 2],
    grad: &Tensor,
) -> Result<[Option<Tensor>; 2]> {
    let (x_lock, y_lock, grad) = (Lock::new(x), Lock::new(y), Lock::new(grad));
    let (x_data, y_data, grad) = (x_lock.input(on)?, y_lock.input(on)?, grad.input(on)?);
    let gradient = |of: &Tensor, factors: [&Input<'_, H>; 2], transposed: [bool; 2]| match of.track_op() {
        true => Ok::<_, candle_core::Error>(Some(product(op, factors, transposed)?.into_tensor())),
        false => Ok(None),
    };
    // Of x y: grad y^T and x^T grad. Of x y^T: grad y and grad^T x.
    let d_x = gradient(x, [&grad, &y_data], [false, !op.transposed])?;
    let d_y = match op.transposed {
        true => gradient(y, [&grad, &x_data], [true, false])?,
        false => gradient(y, [&x_data, &grad], [true, false])?,
    };
    Ok([d_x, d_y])
}
