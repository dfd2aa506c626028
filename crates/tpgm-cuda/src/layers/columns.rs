//! Sums over columns, for gradients of weights and biases: in groups of rows, then over the groups.

use tpgm_core::DType;

use super::error::Result;
use super::{Layers, modules};
use crate::device::Device;

/// Rows are cut into about so many groups: as many as a large GPU runs blocks, and their sums a small part of the rows.
const GROUPS: usize = 256;

/// Groups are a multiple of this many rows.
const ROWS: usize = 8;

/// How rows are cut, by their number alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Groups {
    pub(super) count: u32,
    pub(super) rows: usize,
}

impl Groups {
    pub(super) fn of(rows: usize) -> Self {
        let size = rows.div_ceil(GROUPS).next_multiple_of(ROWS).max(ROWS);
        Self { count: rows.div_ceil(size) as u32, rows: size }
    }

    /// Bytes of scratch memory for the sums of `outputs` rows of `width` columns.
    pub(super) fn bytes(self, outputs: usize, width: usize) -> usize {
        self.count as usize * outputs * width * size_of::<f32>()
    }
}

/// `ColumnSumsTable` of `kernels/layers/columns.cuh`.
#[repr(C)]
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Table {
    partial: u64,
    output: [u64; 2],
    groups: u32,
    width: u32,
    outputs: u32,
    pad: u32,
}
const _: () = assert!(size_of::<Table>() == 40);

impl<D: Device> Layers<D> {
    /// Adds up what the groups have summed, into one or two outputs.
    pub(super) fn add_columns(
        &self,
        dtype: DType,
        groups: Groups,
        width: usize,
        partial: u64,
        outputs: &[u64],
    ) -> Result<()> {
        let mut output = [0; 2];
        output[..outputs.len()].copy_from_slice(outputs);
        let outputs = outputs.len() as u32;
        let table = Table { partial, output, groups: groups.count, width: width as u32, outputs, pad: 0 };
        let units = (outputs as usize * width).div_ceil(32);
        self.launch_kernel(&modules::COLUMN_SUMS, dtype, units, &table)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_cover_all_rows_in_eights() {
        for (rows, count, size) in [(0, 0, 8), (1, 1, 8), (9, 2, 8), (2048, 256, 8), (2049, 129, 16)] {
            assert_eq!(Groups::of(rows), Groups { count, rows: size }, "{rows}");
        }
        for rows in 0..5000 {
            let Groups { count, rows: size } = Groups::of(rows);
            let count = count as usize;
            assert!(count * size >= rows && count.saturating_sub(1) * size < rows.max(1) && count <= GROUPS);
        }
    }
}
