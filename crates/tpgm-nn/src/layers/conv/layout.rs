//! Channels side by side, and planes one behind the other: how tensors have images, and how they are convolved.

use tpgm_core::{Element, Slice};

use crate::layers::float::{Float, vectorized};

/// Elements of a square that is transposed at a time.
const TILE: usize = 8;

vectorized! {
    /// The transposed of a matrix of `rows` rows.
    fn transpose<C>(from: &[C], rows: usize, to: &mut [C]) {
        let columns = from.len() / rows;
        let (whole_rows, whole_columns) = (rows / TILE * TILE, columns / TILE * TILE);
        for row in (0..whole_rows).step_by(TILE) {
            for column in (0..whole_columns).step_by(TILE) {
                let mut tile = [[C::ZERO; TILE]; TILE];
                for (i, tile) in tile.iter_mut().enumerate() {
                    let at = (row + i) * columns + column;
                    tile.copy_from_slice(&from[at..at + TILE]);
                }
                for j in 0..TILE {
                    let line: [C; TILE] = std::array::from_fn(|i| tile[i][j]);
                    let at = (column + j) * rows + row;
                    to[at..at + TILE].copy_from_slice(&line);
                }
            }
            for column in whole_columns..columns {
                for i in row..row + TILE {
                    to[column * rows + i] = from[i * columns + column];
                }
            }
        }
        for row in whole_rows..rows {
            for column in 0..columns {
                to[column * rows + row] = from[row * columns + column];
            }
        }
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
