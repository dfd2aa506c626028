//! Embedding: candle's lookup, and a gradient without atomics.

use candle_core::backend::BackendStorage;
use candle_core::{Result, Tensor};
use tpgm_cuda::layers::EmbeddingGradients;

use super::{Fresh, Home, Input, Lock, failed};
use crate::layers::embedding::Lookup;

/// Of a contiguous table.
pub(in crate::layers) fn forward<H: Home>(
    _op: &Lookup,
    _on: &H,
    [table, ids]: [Input<'_, H>; 2],
) -> Result<Fresh<H>> {
    let storage = table.storage.index_select(ids.storage, table.layout, ids.layout, 0)?;
    let (_, width) = table.shape().dims2()?;
    Ok(Fresh { storage, shape: (ids.shape().elem_count(), width).into() })
}

pub(in crate::layers) fn backward<H: Home>(
    _op: &Lookup,
    on: &H,
    [table, ids]: [&Tensor; 2],
    _y: &Tensor,
    grad: &Tensor,
) -> Result<[Option<Tensor>; 2]> {
    if !table.track_op() {
        return Ok([None, None]);
    }
    let (ids, grad) = (Lock::new(ids), Lock::new(grad));
    let (ids, grad) = (ids.input(on)?, grad.input(on)?);
    let mut d_weight = Fresh::beside(grad.storage, table.shape().clone(), table.dtype())?;
    let mut out = d_weight.output(on)?;
    let operands = EmbeddingGradients { ids: ids.labels()?, grad: grad.rows()?, d_weight: out.rows()? };
    on.layers().embedding_gradient(operands).map_err(failed)?;
    drop(out);
    Ok([Some(d_weight.into_tensor()), None])
}
