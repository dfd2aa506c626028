//! Channels side by side, and planes one behind the other: how tensors have images, and how they are convolved.

use tpgm_core::{Element, Slice};

use crate::layers::float::{Float, vectorized};

/// Elements of a square that is transposed in registers.
const TILE: usize = 8;

/// Columns that are taken through all rows: what is written of them stays in the cache until its lines are full.
const STRIP: usize = 64;

vectorized! {
    /// The transposed of a matrix of `rows` rows.
    fn transpose<C>(from: &[C], rows: usize, to: &mut [C]) {
        let columns = from.len() / rows;
        for strip in (0..columns).step_by(STRIP) {
            let end = columns.min(strip + STRIP);
            for row in (0..rows).step_by(TILE) {
                for column in (strip..end).step_by(TILE) {
                    if row + TILE <= rows && column + TILE <= end {
                        transpose_tile(from, (row, rows), (column, columns), to);
                    } else {
                        for i in row..rows.min(row + TILE) {
                            for j in column..end.min(column + TILE) {
                                to[j * rows + i] = from[i * columns + j];
                            }
                        }
                    }
                }
            }
        }
    }
}

/// A whole square that starts at a row and a column, of so many.
#[inline(always)]
fn transpose_tile<C: Float>(
    from: &[C],
    (row, rows): (usize, usize),
    (column, columns): (usize, usize),
    to: &mut [C],
) {
    let mut tile = [[C::ZERO; TILE]; TILE];
    for (i, tile) in tile.iter_mut().enumerate() {
        let at = (row + i) * columns + column;
        tile.copy_from_slice(&from[at..at + TILE]);
    }
    let lines: [[C; TILE]; TILE] = std::array::from_fn(|j| std::array::from_fn(|i| tile[i][j]));
    for (j, line) in lines.iter().enumerate() {
        let at = (column + j) * rows + row;
        to[at..at + TILE].copy_from_slice(line);
    }
}

/// Images of `planes` planes of `size` elements each, in the compute type and with their channels side by side.
pub(super) fn side_by_side<T: Element, C: Float>(x: Slice<'_>, planes: usize, size: usize, to: &mut [C]) {
    let image = planes * size;
    let mut wide = vec![C::ZERO; if T::DTYPE == C::DTYPE { 0 } else { image }];
    for (i, to) in to.chunks_mut(image.max(1)).enumerate() {
        let x = x.sub(i * image..(i + 1) * image);
        let x = crate::layers::storage::load(x, &mut wide);
        transpose(x, planes, to);
    }
}

/// The way back. What `more` has, elements of the same images as planes, is added.
pub(super) fn planes<T: Element, C: Float>(
    x: &[C],
    planes: usize,
    size: usize,
    more: Option<Slice<'_>>,
    to: &mut [T],
) {
    let image = planes * size;
    let mut wide = vec![C::ZERO; if T::DTYPE == C::DTYPE { 0 } else { image }];
    let mut more_wide = vec![C::ZERO; if T::DTYPE == C::DTYPE || more.is_none() { 0 } else { image }];
    for (i, (x, to)) in x.chunks(image.max(1)).zip(to.chunks_mut(image.max(1))).enumerate() {
        crate::layers::storage::store(to, &mut wide, |to: &mut [C]| {
            transpose(x, size, to);
            if let Some(more) = more {
                let more = more.sub(i * image..(i + 1) * image);
                add(crate::layers::storage::load(more, &mut more_wide), to);
            }
        });
    }
}

vectorized! {
    /// Adds `x` to `y`.
    fn add<C>(x: &[C], y: &mut [C]) {
        for (y, &x) in y.iter_mut().zip(x) {
            *y += x;
        }
    }
}

/// The first `len` elements of memory that is used again and again; they hold anything.
pub(super) fn grown<C: Float>(room: &mut Vec<C>, len: usize) -> &mut [C] {
    if room.len() < len {
        room.resize(len, C::ZERO);
    }
    &mut room[..len]
}
