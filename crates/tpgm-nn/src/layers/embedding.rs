//! Embedding: rows of a table by their number.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, DType, Module, Result, Shape, Tensor};
use candle_nn::{Init, VarBuilder};
use tpgm_core::{Buffer, Element, Slice};

use super::check::{Path, shape_error};
use super::float::Float;
use super::fused::{Arg, Fused, apply2};
use super::gpu::on_gpu;
use super::storage::{Columns, Operand, by_dtype, fill, into_tensor, load, rows_per_piece, scratch, store};
use crate::error::Error;

const NAME: &str = "embedding";

/// Rows of a table, of shape (rows, width), by their number: ids of shape (...) become (..., width).
///
/// Use it in place of `candle_nn::Embedding`, whose gradient is added up by one thread on the CPU, and on a GPU by as many threads
/// as a row has elements. Here the places of an id are sorted first, so that rows are added up in parallel; the places of a row in
/// order, so that the result has the same bits in every run.
#[derive(Debug, Clone)]
pub struct Embedding {
    embeddings: Tensor,
}

impl Embedding {
    /// A layer with a table of shape (rows, width).
    pub fn new(embeddings: Tensor) -> Self {
        Self { embeddings }
    }

    /// The table.
    pub fn embeddings(&self) -> &Tensor {
        &self.embeddings
    }
}

impl Module for Embedding {
    /// Looks up ids of u8, u32 or i64, of any shape.
    ///
    /// # Errors
    ///
    /// If the table is no matrix, ids are of another type or on another device, or an id is no row of the table. On a GPU, where the
    /// host does not see ids, what an id that is no row gives is not said, and it has no part in the gradient.
    fn forward(&self, ids: &Tensor) -> Result<Tensor> {
        let table = &self.embeddings;
        if table.rank() != 2 {
            return Err(shape_error(NAME, "the table must be (rows, width)", &[table, ids]));
        }
        if !matches!(ids.dtype(), DType::U8 | DType::U32 | DType::I64) {
            candle_core::bail!("{NAME}: ids must be u8, u32 or i64; got {:?}", ids.dtype());
        }
        if !table.device().same_device(ids.device()) {
            return Err(Error::LayerDevice { op: NAME }.into());
        }
        let mut shape = ids.dims().to_vec();
        shape.push(table.dims()[1]);
        let ids = ids.flatten_all()?.contiguous()?;
        let floats = matches!(table.dtype(), DType::F64 | DType::F32 | DType::F16 | DType::BF16);
        let y = match Path::with_kernels(table) {
            // The lookup wants a table without gaps.
            Path::Fused if floats && ids.elem_count() > 0 => apply2(Lookup, &table.contiguous()?, &ids)?,
            _ => table.index_select(&ids, 0)?,
        };
        y.reshape(shape)
    }
}

/// Loads a layer: `weight` of shape (rows, width); standard normal where it is made.
///
/// # Errors
///
/// If `vb` has no tensor of this name and shape and cannot make it.
pub fn embedding(rows: usize, width: usize, vb: VarBuilder) -> Result<Embedding> {
    let init = Init::Randn { mean: 0.0, stdev: 1.0 };
    Ok(Embedding::new(vb.get_with_hints((rows, width), "weight", init)?))
}

/// The operation on a table and ids of shape (places).
#[derive(Debug)]
pub(super) struct Lookup;

impl Lookup {
    fn gradient<T: Element, C: Float>(ids: &[usize], grad: Slice<'_>, rows: usize, width: usize) -> Buffer {
        /// So many places are added up in the type that is computed in; more in f64.
        const FEW: usize = 32;
        let (starts, order) = sorted(ids, rows);
        let (out, _) = fill::<T, ()>(rows * width, rows_per_piece(width) * width, |range, piece| {
            let (mut grad_scratch, mut out_scratch) = (scratch::<T, C>(width), scratch::<T, C>(width));
            for (i, out) in piece.chunks_mut(width).enumerate() {
                let row = range.start / width + i;
                let places = &order[starts[row]..starts[row + 1]];
                if places.is_empty() {
                    continue; // it is cleared
                }
                let mut each = |add: &mut dyn FnMut(&[C])| {
                    for place in places {
                        add(load(grad.sub(place * width..(place + 1) * width), &mut grad_scratch));
                    }
                };
                store(out, &mut out_scratch, |out: &mut [C]| {
                    out.fill(C::ZERO);
                    let add = |to: &mut [C], grad: &[C]| {
                        to.iter_mut().zip(grad).for_each(|(to, &grad)| *to += grad);
                    };
                    if places.len() <= FEW {
                        each(&mut |grad| add(out, grad));
                        return;
                    }
                    let mut sums = Columns::new(width);
                    each(&mut |grad| sums.row(|sum| add(sum, grad)));
                    for (out, sum) in out.iter_mut().zip(sums.finish()) {
                        *out = C::from_f64(sum);
                    }
                });
            }
        });
        T::buffer(out)
    }
}

/// For each row where its places start, and the places by row, those of a row in order. Ids that are no row are left out.
fn sorted(ids: &[usize], rows: usize) -> (Vec<usize>, Vec<usize>) {
    let mut starts = vec![0; rows + 1];
    for &id in ids.iter().filter(|&&id| id < rows) {
        starts[id + 1] += 1;
    }
    for row in 0..rows {
        starts[row + 1] += starts[row];
    }
    let (mut next, mut order) = (starts.clone(), vec![0; starts[rows]]);
    for (place, &id) in ids.iter().enumerate().filter(|(_, id)| **id < rows) {
        order[next[id]] = place;
        next[id] += 1;
    }
    (starts, order)
}

impl Fused<2> for Lookup {
    on_gpu!(2, embedding);

    fn name(&self) -> &'static str {
        NAME
    }

    fn forward(&self, [table, ids]: [Arg<'_>; 2]) -> Result<(CpuStorage, Shape)> {
        let y = table.storage.index_select(ids.storage, table.layout, ids.layout, 0)?;
        let (_, width) = table.shape().dims2()?;
        Ok((y, (ids.shape().elem_count(), width).into()))
    }

    fn backward(
        &self,
        [table, ids]: [&Tensor; 2],
        _y: &Tensor,
        grad: &Tensor,
    ) -> Result<[Option<Tensor>; 2]> {
        if !table.track_op() {
            return Ok([None, None]);
        }
        let (rows, width) = table.dims2()?;
        let ids = ids.to_dtype(DType::I64)?.to_vec1::<i64>()?;
        let ids: Vec<_> = ids.into_iter().map(|id| usize::try_from(id).unwrap_or(usize::MAX)).collect();
        let grad = Operand::new(NAME, grad);
        let grad = grad.slice()?;
        let dx = by_dtype!(grad.dtype(), T, C => Self::gradient::<T, C>(&ids, grad, rows, width));
        Ok([Some(into_tensor(dx, table.shape())?), None])
    }
}
