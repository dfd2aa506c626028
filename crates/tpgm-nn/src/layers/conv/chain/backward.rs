//! The way back.

use std::mem::MaybeUninit;
use std::ops::Range;

use rayon::prelude::*;
use tpgm_core::{Element, Slice};

use super::{Around, Chain, Kept, Layer, Rooms};
use crate::layers::conv::finish::{activate, column_sums, slope, slope_and_sums};
use crate::layers::conv::layout::{grown, pixels, uninit, write_pixels};
use crate::layers::conv_norm::ConvActivation;
use crate::layers::float::{Float, accumulate};
use crate::layers::storage::pieces;

/// Tasks of the backward pass, at most: each has sums of its own for the gradients of weights.
const PARTS: usize = 32;

/// Which gradients of a layer are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::layers::conv) struct Wanted {
    pub(in crate::layers::conv) weight: bool,
    pub(in crate::layers::conv) shift: bool,
}

/// Gradients of a layer from some of the images, those that were wanted: of the weight, in the order of
/// [`Step`](crate::layers::conv::step::Step) and empty before the first of the images, and of the shift.
#[derive(Debug)]
pub(in crate::layers::conv) struct Sums<C> {
    pub(in crate::layers::conv) weight: Vec<C>,
    pub(in crate::layers::conv) shift: Vec<f64>,
}

/// What the backward pass starts from.
#[derive(Debug, Clone, Copy)]
struct Given<'a, C> {
    x: Slice<'a>,
    kept: &'a Kept<C>,
    y: Slice<'a>,
    grad: Slice<'a>,
    wanted: &'a [Wanted],
}

impl<C: Float> Chain<C> {
    /// The gradient of images `x`, if wanted, and those of the layers, from the result `y` and its gradient: of each task the sums
    /// of all layers.
    pub(in crate::layers::conv) fn backward<T: Element>(
        &self,
        x: Slice<'_>,
        kept: &Kept<C>,
        y: Slice<'_>,
        grad: Slice<'_>,
        of_x: bool,
        wanted: &[Wanted],
    ) -> (Option<Vec<T>>, Vec<Vec<Sums<C>>>) {
        let from = self.input().len();
        let len = if of_x { self.batch * from } else { 0 };
        let mut dx: Vec<T> = Vec::with_capacity(len);
        // Consecutive images of a task share their sums.
        let tasks = self.batch.div_ceil(self.images);
        let images = self.images * tasks.div_ceil(PARTS).max(1);
        let mut places: Vec<&mut [MaybeUninit<T>]> = pieces(&mut dx, len, images * from).collect();
        places.resize_with(self.batch.div_ceil(images), Default::default);
        let given = Given { x, kept, y, grad, wanted };
        let sums = places
            .into_par_iter()
            .enumerate()
            .map_init(Rooms::default, |rooms, (i, dx)| {
                let none =
                    |layer: &Layer<C>| Sums { weight: vec![], shift: vec![0.0; layer.step.sizes.outputs] };
                let mut sums: Vec<_> = self.layers.iter().map(none).collect();
                let all = i * images..self.batch.min((i + 1) * images);
                for start in all.clone().step_by(self.images) {
                    let some = start..all.end.min(start + self.images);
                    let at = |image: usize| (image - all.start) * from;
                    let dx = if of_x { Some(&mut dx[at(some.start)..at(some.end)]) } else { None };
                    self.backward_task::<T>(given, some, dx, &mut sums, rooms);
                }
                sums
            })
            .collect();
        // SAFETY: the pieces cover as many elements of the spare capacity, and tasks ran on all of them, which wrote them.
        unsafe { dx.set_len(len) };
        (of_x.then_some(dx), sums)
    }

    /// Writes all elements of `dx`.
    fn backward_task<T: Element>(
        &self,
        given: Given<'_, C>,
        images: Range<usize>,
        dx: Option<&mut [MaybeUninit<T>]>,
        sums: &mut [Sums<C>],
        rooms: &mut Rooms<C>,
    ) {
        let Given { kept: Kept(kept), wanted, .. } = given;
        let part = |size: usize| images.start * size..images.end * size;
        let [from, to] = [self.input(), self.output()];
        let Rooms { input, result, grad, grads: [own, other], recomputed, small: [small, sum_room], .. } =
            rooms;
        let (mut own, mut other) = (own, other);
        // What is kept of a layer.
        let kept = |i: usize| -> &[C] { &kept[i][part(kept[i].len() / self.batch)] };
        let path = self.path();
        let last = path.len() - 1;
        let y = if self.is_result(last) || self.activation != ConvActivation::None {
            pixels(given.y.sub(part(to.len())), self.orders[1], to, result)
        } else {
            &[]
        };
        let around = self.layer_around().map(|layer| (layer, wanted[path.len()]));
        let x = if wanted[0].weight || around.is_some_and(|(_, wanted)| wanted.weight) {
            pixels(given.x.sub(part(from.len())), self.orders[0], from, input)
        } else {
            &[]
        };
        // The gradient of the sum.
        let of_sum = given.grad.sub(part(to.len()));
        let rows = images.len() * to.size;
        let of_sum: &[C] = match self.activation {
            ConvActivation::None => pixels(of_sum, self.orders[1], to, grad),
            activation => {
                let behind = pixels(of_sum, self.orders[1], to, own);
                let of_sum = grown(grad, behind.len());
                let of = if activation.slope_from_result() { y } else { kept(self.layers.len()) };
                slope(activation, of, behind, of_sum);
                of_sum
            }
        };
        // The first layer that has anything to compute.
        let needed = |wanted: &Wanted| wanted.weight || wanted.shift;
        let lowest =
            if dx.is_some() { 0 } else { wanted[..=last].iter().position(needed).unwrap_or(path.len()) };
        let finish = |i: usize, rows, grads: &mut [C], sums: &mut Sums<C>, room: &mut Vec<C>| {
            let kept = if self.is_result(i) { y } else { kept(i) };
            self.layers[i].finish_gradient(wanted[i], kept, rows, grads, sums, room);
        };
        // Whether the gradient that goes on is that of the sum, or in `own`.
        let mut is_of_sum = true;
        if lowest <= last && path[last].activation == ConvActivation::None {
            if wanted[last].shift {
                column_sums(of_sum, &mut sums[last].shift, sum_room);
            }
        } else if lowest <= last {
            let own = grown(own, of_sum.len());
            own.copy_from_slice(of_sum);
            finish(last, 0..rows, own, &mut sums[last], sum_room);
            is_of_sum = false;
        }
        for i in (lowest..path.len()).rev() {
            let step = &path[i].step;
            let grads = if is_of_sum { of_sum } else { &own[..images.len() * step.sizes.output().len()] };
            if wanted[i].weight {
                let input: &[C] = match i.checked_sub(1) {
                    None => x,
                    Some(before) => {
                        let kept = kept(before);
                        let activation = path[before].activation;
                        if activation.slope_from_result() {
                            kept
                        } else {
                            let input = grown(recomputed, kept.len());
                            activate(activation, kept, input);
                            input
                        }
                    }
                };
                step.add_weight_gradient(input, grads, &mut sums[i].weight, small);
            }
            if i > lowest {
                let before = uninit(grown(other, images.len() * step.sizes.input().len()));
                let sums = &mut sums[i - 1];
                step.input_gradient(grads, before, small, |rows, grads| {
                    finish(i - 1, rows, grads, sums, sum_room)
                });
                std::mem::swap(&mut own, &mut other);
                is_of_sum = false;
            }
        }
        let mut of_around: &[C] = of_sum;
        if let Some((layer, wanted)) = around {
            let sums = &mut sums[path.len()];
            if layer.activation != ConvActivation::None {
                let grads = grown(recomputed, of_sum.len());
                grads.copy_from_slice(of_sum);
                finish(path.len(), 0..rows, grads, sums, sum_room);
                of_around = grads;
            } else if wanted.shift {
                column_sums(of_around, &mut sums.shift, sum_room);
            }
            if wanted.weight {
                layer.step.add_weight_gradient(x, of_around, &mut sums.weight, small);
            }
        }
        let Some(dx) = dx else { return };
        write_pixels::<T, C>(dx, self.orders[0], from, other, |dx| {
            let step = &path[0].step;
            let grads = if is_of_sum { of_sum } else { &own[..images.len() * step.sizes.output().len()] };
            let dx = step.input_gradient(grads, dx, small, |rows, dx| {
                if self.around == Around::Input {
                    accumulate(&of_sum[rows.start * from.channels..rows.end * from.channels], dx);
                }
            });
            if let Some((layer, _)) = around {
                layer.step.add_input_gradient(of_around, dx, small);
            }
        });
    }
}

impl<C: Float> Layer<C> {
    /// Brings the gradient of rows of the result in front of the activation, and sums it. `kept` is what says the slope of all
    /// rows.
    fn finish_gradient(
        &self,
        wanted: Wanted,
        kept: &[C],
        rows: Range<usize>,
        grads: &mut [C],
        sums: &mut Sums<C>,
        room: &mut Vec<C>,
    ) {
        let channels = self.step.sizes.outputs;
        if self.activation != ConvActivation::None {
            let kept = &kept[rows.start * channels..rows.end * channels];
            slope_and_sums(self.activation, kept, grads, &mut sums.shift, room);
        } else if wanted.shift {
            column_sums(grads, &mut sums.shift, room);
        }
    }
}
