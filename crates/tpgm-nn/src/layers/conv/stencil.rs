//! Depthwise convolution of images whose channels lie side by side: (height, width, channels).
//!
//! Every channel is convolved with its own kernel, so a vector of channels takes the same steps whatever the size of the image.
//! Sixteen channels are taken through the whole image, and four elements of a row at a time, which share the loads of the kernel.

use super::padding::Axis;
use crate::layers::float::{Float, vectorized};

/// Elements of a result along one dimension that are computed from the same elements of the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Run {
    /// The first of the elements, and how far they are apart.
    to: usize,
    to_step: usize,
    count: usize,
    /// What the first takes: elements of the source, and of the kernel.
    taps: Vec<(usize, usize)>,
    /// How far the sources of two neighbors are apart.
    from_step: usize,
}

/// The runs of a convolution: elements of the result take elements of the image.
pub(super) fn forward(axis: &Axis) -> Vec<Run> {
    let taps = |to: usize| {
        let start = to * axis.stride;
        let inside = move |k: &usize| (axis.before..axis.before + axis.size).contains(&(start + k));
        (0..axis.kernel).filter(inside).map(|k| (start + k - axis.before, k)).collect()
    };
    runs(axis.out, 1, axis.stride, taps)
}

/// The runs of its gradient: elements of the image take elements of the result.
pub(super) fn backward(axis: &Axis) -> Vec<Run> {
    let taps = |to: usize| {
        let from = |k: usize| {
            let start = (to + axis.before).checked_sub(k)?;
            (start.is_multiple_of(axis.stride) && start / axis.stride < axis.out)
                .then_some((start / axis.stride, k))
        };
        (0..axis.kernel).filter_map(from).collect()
    };
    runs(axis.size, axis.stride, 1, taps)
}

fn runs(
    len: usize,
    to_step: usize,
    from_step: usize,
    taps: impl Fn(usize) -> Vec<(usize, usize)>,
) -> Vec<Run> {
    let mut runs: Vec<Run> = vec![];
    for first in 0..to_step.min(len) {
        let mut open = false;
        for to in (first..len).step_by(to_step) {
            let taps = taps(to);
            match runs.last_mut().filter(|_| open) {
                Some(run) if run.continues(&taps) => run.count += 1,
                _ => runs.push(Run { to, to_step, count: 1, taps, from_step }),
            }
            open = true;
        }
    }
    runs
}

impl Run {
    /// Whether its next element would take these.
    fn continues(&self, taps: &[(usize, usize)]) -> bool {
        let by = self.count * self.from_step;
        taps.iter().copied().eq(self.taps.iter().map(|&(from, k)| (from + by, k)))
    }
}

/// What [`apply`] goes through: rows and columns, and the widths of source, kernel and result.
#[derive(Debug, Clone)]
pub(super) struct Stencil {
    pub(super) rows: Vec<Run>,
    pub(super) columns: Vec<Run>,
    pub(super) from_width: usize,
    pub(super) kernel_width: usize,
    pub(super) to_width: usize,
}

/// Channels that are taken together.
const LANES: usize = 16;

/// Elements of a row that are taken together.
const PIXELS: usize = 4;

vectorized! {
    /// Every element of `to` becomes the sum over its taps of element of `from` times element of `weight` (taps, channels).
    fn apply_to_image<C>(stencil: &Stencil, from: &[C], weight: &[C], channels: usize, to: &mut [C]) {
        let mut channel = 0;
        while channel + LANES <= channels {
            apply_to_lanes::<C, LANES>(stencil, from, weight, channels, channel, to);
            channel += LANES;
        }
        if channel + LANES / 2 <= channels {
            apply_to_lanes::<C, { LANES / 2 }>(stencil, from, weight, channels, channel, to);
            channel += LANES / 2;
        }
        for channel in channel..channels {
            apply_to_lanes::<C, 1>(stencil, from, weight, channels, channel, to);
        }
    }
}

/// A convolution of one image or its gradient.
pub(super) fn apply<C: Float>(stencil: &Stencil, from: &[C], weight: &[C], channels: usize, to: &mut [C]) {
    apply_to_image(stencil, from, weight, channels, to);
}

#[inline(always)]
fn apply_to_lanes<C: Float, const L: usize>(
    stencil: &Stencil,
    from: &[C],
    weight: &[C],
    channels: usize,
    channel: usize,
    to: &mut [C],
) {
    for rows in &stencil.rows {
        for row in 0..rows.count {
            let to = &mut to[(rows.to + row * rows.to_step) * stencil.to_width * channels + channel..];
            for columns in &stencil.columns {
                let mut at = 0;
                while at < columns.count {
                    let count = if at + PIXELS <= columns.count { PIXELS } else { 1 };
                    if count == PIXELS {
                        let sums = pixels::<C, L, PIXELS>(
                            stencil, rows, row, columns, at, from, weight, channels, channel,
                        );
                        for (i, sums) in sums.iter().enumerate() {
                            let start = (columns.to + (at + i) * columns.to_step) * channels;
                            to[start..start + L].copy_from_slice(sums);
                        }
                    } else {
                        let [sums] = pixels::<C, L, 1>(
                            stencil, rows, row, columns, at, from, weight, channels, channel,
                        );
                        let start = (columns.to + at * columns.to_step) * channels;
                        to[start..start + L].copy_from_slice(&sums);
                    }
                    at += count;
                }
            }
        }
    }
}

/// `N` neighbors of a run.
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "all of them are loop variables of its only caller")]
fn pixels<C: Float, const L: usize, const N: usize>(
    stencil: &Stencil,
    rows: &Run,
    row: usize,
    columns: &Run,
    at: usize,
    from: &[C],
    weight: &[C],
    channels: usize,
    channel: usize,
) -> [[C; L]; N] {
    let mut sums = [[C::ZERO; L]; N];
    for &(from_row, ky) in &rows.taps {
        let line = (from_row + row * rows.from_step) * stencil.from_width;
        for &(from_column, kx) in &columns.taps {
            let w: &[C; L] = lanes(weight, (ky * stencil.kernel_width + kx) * channels + channel);
            let first = line + from_column + at * columns.from_step;
            for (i, sums) in sums.iter_mut().enumerate() {
                let x: &[C; L] = lanes(from, (first + i * columns.from_step) * channels + channel);
                add_products(x, w, sums);
            }
        }
    }
    sums
}

#[inline(always)]
fn lanes<C, const L: usize>(data: &[C], at: usize) -> &[C; L] {
    data[at..].first_chunk().expect("runs lie inside the image")
}

vectorized! {
    /// Adds the gradient of the weight, (taps, channels), of one image `x` whose result has the gradient `grad`.
    fn add_weight_gradient_of_image<C>(axes: &[Axis; 2], x: &[C], grad: &[C], channels: usize, sums: &mut [C]) {
        let mut channel = 0;
        while channel + LANES / 2 <= channels {
            weight_lanes::<C, { LANES / 2 }>(axes, x, grad, channels, channel, sums);
            channel += LANES / 2;
        }
        for channel in channel..channels {
            weight_lanes::<C, 1>(axes, x, grad, channels, channel, sums);
        }
    }
}

/// Adds the gradient of the weight, (taps, channels), of one image `x` whose result has the gradient `grad`.
pub(super) fn add_weight_gradient<C: Float>(
    axes: &[Axis; 2],
    x: &[C],
    grad: &[C],
    channels: usize,
    sums: &mut [C],
) {
    add_weight_gradient_of_image(axes, x, grad, channels, sums);
}

#[inline(always)]
fn weight_lanes<C: Float, const L: usize>(
    axes: &[Axis; 2],
    x: &[C],
    grad: &[C],
    channels: usize,
    channel: usize,
    sums: &mut [C],
) {
    for ky in 0..axes[0].kernel {
        match axes[1].kernel {
            3 => weight_row::<C, L, 3>(axes, ky, 0, x, grad, channels, channel, sums),
            5 => weight_row::<C, L, 5>(axes, ky, 0, x, grad, channels, channel, sums),
            width => (0..width)
                .for_each(|kx| weight_row::<C, L, 1>(axes, ky, kx, x, grad, channels, channel, sums)),
        }
    }
}

/// `K` neighbors in a row of the kernel.
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "all of them are loop variables of its only caller")]
fn weight_row<C: Float, const L: usize, const K: usize>(
    axes: &[Axis; 2],
    ky: usize,
    kx: usize,
    x: &[C],
    grad: &[C],
    channels: usize,
    channel: usize,
    sums: &mut [C],
) {
    let [rows, columns] = axes;
    let inside: [_; K] = std::array::from_fn(|i| columns.inside(kx + i));
    // Where all of them lie inside the image, and where any does.
    let all = inside.iter().fold(0..columns.out, |all, one| all.start.max(one.start)..all.end.min(one.end));
    let all = all.start..all.end.max(all.start);
    let any = inside.iter().fold(columns.out..0, |any, one| any.start.min(one.start)..any.end.max(one.end));
    let mut totals = [[C::ZERO; L]; K];
    for row in rows.inside(ky) {
        let line = (row * rows.stride + ky - rows.before) * columns.size;
        let grads = row * columns.out;
        for column in any.clone() {
            let g: &[C; L] = lanes(grad, (grads + column) * channels + channel);
            // In front of the image this wraps, and is not used.
            let first = (line + column * columns.stride + kx).wrapping_sub(columns.before);
            if all.contains(&column) {
                for (i, totals) in totals.iter_mut().enumerate() {
                    add_products(g, lanes(x, (first + i) * channels + channel), totals);
                }
            } else {
                for (i, totals) in totals.iter_mut().enumerate() {
                    if inside[i].contains(&column) {
                        add_products(g, lanes(x, first.wrapping_add(i) * channels + channel), totals);
                    }
                }
            }
        }
    }
    for (i, totals) in totals.iter().enumerate() {
        let start = (ky * columns.kernel + kx + i) * channels + channel;
        sums[start..start + L].iter_mut().zip(totals).for_each(|(sum, &total)| *sum += total);
    }
}

#[inline(always)]
fn add_products<C: Float, const L: usize>(x: &[C; L], y: &[C; L], totals: &mut [C; L]) {
    for lane in 0..L {
        totals[lane] += x[lane] * y[lane];
    }
}
