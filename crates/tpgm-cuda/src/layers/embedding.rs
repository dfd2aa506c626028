//! The gradient of an embedding.

use super::error::{Error, Result};
use super::labels::Labels;
use super::rows::{MOST_COLUMNS, Operands, Rows, RowsMut, Table as RowsTable};
use super::{Layers, modules};
use crate::device::Device;

const NAME: &str = "embedding";

/// About so many blocks sort: as many as a large GPU runs, and each reads all ids.
const SORTING_BLOCKS: usize = 512;

/// Threads of a warp.
const WARP: usize = 32;

/// Operands of [`Layers::embedding_gradient`].
#[derive(Debug)]
pub struct EmbeddingGradients<'a> {
    /// The row of the table that each place took.
    pub ids: Labels<'a>,
    /// The gradient of each place: as many rows as ids, of the table's width and element type.
    pub grad: Rows<'a>,
    /// Gets the gradient of the table.
    pub d_weight: RowsMut<'a>,
}

/// `EmbeddingSortTable` of `kernels/layers/embedding.cuh`.
#[repr(C)]
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct SortTable {
    ids: u64,
    starts: u64,
    order: u64,
    count: u32,
    id_type: u32,
    rows: u32,
    rows_per_block: u32,
}
const _: () = assert!(size_of::<SortTable>() == 40);

/// `EmbeddingGradientTable` of `kernels/layers/embedding.cuh`.
#[repr(C)]
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct GradientTable {
    grad: RowsTable,
    out: RowsTable,
    starts: u64,
    order: u64,
    rows: u32,
    width: u32,
    vector: u32,
    pad: u32,
}
const _: () = assert!(size_of::<GradientTable>() == 64);

impl<D: Device> Layers<D> {
    /// The gradient of an embedding's table: of each row the sum of the gradients of the places that took it, 0 where none did. A
    /// place whose id is no row of the table counts nowhere: the host does not see ids.
    ///
    /// Two launches: places are sorted by their row, then gradients are added up in that order, so the result has the same bits in
    /// every run. The gradients are read once and the table's is written once: 4 bytes per f32 element of each.
    ///
    /// # Errors
    ///
    /// If operands do not fit each other, there are more than 2^30 places or rows, or the device fails.
    pub fn embedding_gradient(&self, operands: EmbeddingGradients<'_>) -> Result<()> {
        let EmbeddingGradients { ids, grad, d_weight } = operands;
        let mut seen = Operands::new(NAME, "grad", &grad)?;
        let refuse = |operand, got, expected| Err(Error::Shape { layer: NAME, operand, got, expected });
        if ids.len() != seen.rows {
            return refuse("ids", format!("{} numbers", ids.len()), format!("{} are", seen.rows));
        }
        let grad = seen.rows("grad", &grad)?;
        let (out, rows) = seen.other_rows_mut("d_weight", &d_weight)?;
        for (operand, count) in [("ids", ids.len()), ("d_weight", rows)] {
            if count > MOST_COLUMNS {
                return refuse(operand, format!("{count} rows"), format!("at most {MOST_COLUMNS} are"));
            }
        }
        let (count, width) = (seen.rows, seen.width);
        if rows == 0 || width == 0 {
            return Ok(());
        }
        let starts_bytes = (rows + 1) * size_of::<u32>();
        let rows_per_block = rows.div_ceil(SORTING_BLOCKS).clamp(1, self.device.threads());
        self.with_scratch(starts_bytes + count * size_of::<u32>(), |starts| {
            let order = starts + starts_bytes as u64;
            let table = SortTable {
                ids: ids.address(),
                starts,
                order,
                count: count as u32,
                id_type: ids.kind(),
                rows: rows as u32,
                rows_per_block: rows_per_block as u32,
            };
            self.launch_kernel(&modules::EMBEDDING_SORT, seen.dtype, rows.div_ceil(rows_per_block), &table)?;
            let (rows_u32, vector) = (rows as u32, seen.vector());
            let table = GradientTable {
                grad,
                out,
                starts,
                order,
                rows: rows_u32,
                width: width as u32,
                vector,
                pad: 0,
            };
            let units = rows.div_ceil(self.device.threads() / WARP) * width.div_ceil(4 * WARP);
            self.launch_kernel(&modules::EMBEDDING_BACKWARD, seen.dtype, units, &table)
        })
    }
}
