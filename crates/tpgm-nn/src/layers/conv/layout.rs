//! Channels side by side, and planes one behind the other: how tensors have images, and how they are convolved.

use std::any::TypeId;
use std::mem::MaybeUninit;

use candle_core::Shape;
use tpgm_core::{Element, Slice};

use crate::layers::float::{Float, vectorized};
use crate::layers::storage::{cleared, load, store};

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

/// How the elements of an image lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    /// (channels, height, width): as everywhere in candle.
    Planes,
    /// (height, width, channels): between operations that take and return it, where nothing needs to be transposed.
    Pixels,
}

impl Order {
    /// The shape of a tensor of so many images.
    pub(crate) fn shape(self, batch: usize, channels: usize, height: usize, width: usize) -> Shape {
        match self {
            Order::Planes => (batch, channels, height, width).into(),
            Order::Pixels => (batch, height, width, channels).into(),
        }
    }

    /// (batch, channels, height, width) of a tensor of images.
    pub(crate) fn dims(self, shape: &[usize]) -> Vec<usize> {
        match (self, shape) {
            (Order::Pixels, &[batch, height, width, channels]) => vec![batch, channels, height, width],
            _ => shape.to_vec(),
        }
    }
}

/// The sizes of an image: its channels, and the elements of each.
#[derive(Debug, Clone, Copy)]
pub(super) struct Image {
    pub(super) channels: usize,
    pub(super) size: usize,
}

impl Image {
    pub(super) fn len(self) -> usize {
        self.channels * self.size
    }
}

/// Images in the compute type with their channels side by side: where they are if they can be read there, else in `room`.
pub(super) fn pixels<'a, C: Float>(
    x: Slice<'a>,
    order: Order,
    image: Image,
    room: &'a mut Vec<C>,
) -> &'a [C] {
    match (order, C::direct(x)) {
        (Order::Pixels, Some(x)) => x,
        (Order::Pixels, None) => {
            let room = grown(room, x.len());
            C::load(x, room);
            room
        }
        (Order::Planes, direct) => {
            let room = grown(room, x.len());
            let len = image.len().max(1);
            let mut wide = vec![C::ZERO; if direct.is_some() { 0 } else { len }];
            for (i, to) in room.chunks_mut(len).enumerate() {
                transpose(load(x.sub(i * len..(i + 1) * len), &mut wide), image.channels, to);
            }
            room
        }
    }
}

/// Lets `f` write images in the compute type with their channels side by side, all elements of them: where they will be if they
/// can be written there, else in `room`.
pub(super) fn write_pixels<T: Element, C: Float>(
    y: &mut [MaybeUninit<T>],
    order: Order,
    image: Image,
    room: &mut Vec<C>,
    f: impl FnOnce(&mut [MaybeUninit<C>]),
) {
    if order == Order::Pixels && TypeId::of::<T>() == TypeId::of::<C>() {
        // SAFETY: the types are the same.
        return f(unsafe { &mut *(std::ptr::from_mut(y) as *mut [MaybeUninit<C>]) });
    }
    let room = grown(room, y.len());
    f(uninit(room));
    let y = cleared(y);
    match order {
        Order::Pixels => C::store(room, T::slice_mut(y)),
        Order::Planes => {
            let len = image.len().max(1);
            let mut wide = vec![C::ZERO; if T::DTYPE == C::DTYPE { 0 } else { len }];
            for (x, y) in room.chunks(len).zip(y.chunks_mut(len)) {
                store(y, &mut wide, |y: &mut [C]| transpose(x, image.size, y));
            }
        }
    }
}

/// Copies elements to where none are.
pub(super) fn copy<C: Float>(x: &[C], to: &mut [MaybeUninit<C>]) {
    to.iter_mut().zip(x).for_each(|(to, &x)| *to = MaybeUninit::new(x));
}

/// Memory as a place to write to.
pub(super) fn uninit<C: Float>(x: &mut [C]) -> &mut [MaybeUninit<C>] {
    // SAFETY: `MaybeUninit<C>` is laid out as `C`, and nobody in this module writes anything but elements to such places.
    unsafe { &mut *(std::ptr::from_mut(x) as *mut [MaybeUninit<C>]) }
}

/// The first `len` elements of memory that is used again and again; they hold anything.
pub(super) fn grown<C: Float>(room: &mut Vec<C>, len: usize) -> &mut [C] {
    if room.len() < len {
        room.resize(len, C::ZERO);
    }
    &mut room[..len]
}
