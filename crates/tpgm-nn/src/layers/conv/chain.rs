//! Convolutions one after the other, each with shift and activation, a few images at a time.
//!
//! A task takes a few images through all layers, forward or backward, on one thread: what lies between two layers is read while
//! it is in the cache, and written only where the backward pass needs it. How many images a task takes depends on sizes alone, so
//! results have the same bits on any number of threads.

use std::mem::MaybeUninit;

use rayon::prelude::*;
use tpgm_core::{Element, Slice};

use super::finish::{activate, add_shift, shift_and_activate, slope_and_sums};
use super::layout::{grown, planes, side_by_side};
use super::step::{Sizes, Step};
use crate::layers::conv_norm::ConvActivation;
use crate::layers::float::{Float, vectorized};
use crate::layers::storage::{cleared, pieces};

/// Elements of the largest image between two layers that a task has at a time, at most, unless a single image has more.
const ELEMENTS: usize = 128 * 1024;

/// Tasks of the backward pass, at most: each has sums of its own for the gradients of weights.
const PARTS: usize = 32;

/// A convolution with what follows it.
#[derive(Debug)]
pub(super) struct Layer<C> {
    pub(super) step: Step<C>,
    /// What is added to each output; empty for nothing.
    pub(super) shift: Vec<C>,
    pub(super) activation: ConvActivation,
}

/// Several of them, and whether their input is added to the result.
#[derive(Debug)]
pub(super) struct Chain<C> {
    layers: Vec<Layer<C>>,
    batch: usize,
    /// Images of a task.
    images: usize,
    shortcut: bool,
}

/// What the backward pass needs of the forward one: for each layer its result, or what its activation was applied to. Empty for
/// the last layer where the result of the whole says it.
#[derive(Debug)]
pub(super) struct Kept<C>(Vec<Vec<C>>);

/// Which gradients of a layer are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) weight: bool,
    pub(super) shift: bool,
}

/// Gradients of a layer, those that were wanted: of the weight, in the order of [`Step`], and of the shift.
#[derive(Debug, Clone)]
pub(super) struct Sums<X> {
    pub(super) weight: Vec<X>,
    pub(super) shift: Vec<f64>,
}

/// Memory that tasks use one after the other.
#[derive(Debug)]
struct Rooms<C> {
    first: Vec<C>,
    other: Vec<C>,
    recomputed: Vec<C>,
    of_layers: Vec<Vec<C>>,
    small: Vec<C>,
}

impl<C> Default for Rooms<C> {
    fn default() -> Self {
        Self { first: vec![], other: vec![], recomputed: vec![], of_layers: vec![], small: vec![] }
    }
}

impl<C: Float> Chain<C> {
    /// Of at least one layer, whose sizes fit.
    pub(super) fn new(layers: Vec<Layer<C>>, batch: usize, shortcut: bool) -> Self {
        let sizes = layers.iter().map(|layer| &layer.step.sizes);
        let largest = sizes.map(|s| (s.from() * s.inputs).max(s.to() * s.outputs)).max().unwrap_or(0);
        let images = (ELEMENTS / largest.max(1)).clamp(1, batch.max(1));
        // A power of two shares out evenly among the usual numbers of threads.
        let tasks = batch.div_ceil(images).next_power_of_two();
        Self { layers, batch, images: batch.div_ceil(tasks).max(1), shortcut }
    }

    /// The sizes of its layers.
    pub(super) fn sizes(&self) -> impl Iterator<Item = &Sizes> {
        self.layers.iter().map(|layer| &layer.step.sizes)
    }

    fn first(&self) -> &Layer<C> {
        &self.layers[0]
    }

    fn last(&self) -> &Layer<C> {
        &self.layers[self.layers.len() - 1]
    }

    /// Elements of an image.
    fn from(&self) -> usize {
        self.first().step.sizes.from() * self.first().step.sizes.inputs
    }

    /// Elements of its result.
    fn to(&self) -> usize {
        self.last().to()
    }

    /// Whether the slope of a layer's activation is known from the result of the whole.
    fn is_in_result(&self, layer: usize) -> bool {
        let activation = self.layers[layer].activation;
        let direct = activation.slope_from_result() && !self.shortcut;
        layer + 1 == self.layers.len() && (direct || activation == ConvActivation::None)
    }

    /// The result of images `x`, planes like it, and what is needed to go back if that is wanted.
    pub(super) fn forward<T: Element>(&self, x: Slice<'_>, keep: bool) -> (Vec<T>, Kept<C>) {
        let mut y = Vec::with_capacity(self.batch * self.to());
        let kept_len = |i: usize| if keep && !self.is_in_result(i) { self.layers[i].to() } else { 0 };
        let mut kept: Vec<Vec<C>> =
            (0..self.layers.len()).map(|i| Vec::with_capacity(self.batch * kept_len(i))).collect();
        {
            let mut tasks: Vec<(&mut [MaybeUninit<T>], Vec<&mut [MaybeUninit<C>]>)> =
                pieces(&mut y, self.batch * self.to(), self.images * self.to())
                    .map(|y| (y, vec![]))
                    .collect();
            for (i, kept) in kept.iter_mut().enumerate() {
                let mut pieces = pieces(kept, self.batch * kept_len(i), self.images * kept_len(i));
                for (_, kept) in &mut tasks {
                    kept.push(pieces.next().unwrap_or_default());
                }
            }
            tasks.into_par_iter().enumerate().for_each_init(Rooms::default, |rooms, (i, (y, kept))| {
                let start = i * self.images * self.from();
                let images = y.len() / self.to();
                let kept = kept.into_iter().map(cleared).collect();
                self.forward_task::<T>(x.sub(start..start + images * self.from()), kept, cleared(y), rooms);
            });
        }
        // SAFETY: the pieces cover as many elements of the spare capacity, and tasks ran on all of them, which cleared them.
        unsafe {
            y.set_len(self.batch * self.to());
            for (i, kept) in kept.iter_mut().enumerate() {
                kept.set_len(self.batch * kept_len(i));
            }
        }
        (y, Kept(kept))
    }

    fn forward_task<T: Element>(&self, x: Slice<'_>, kept: Vec<&mut [C]>, y: &mut [T], rooms: &mut Rooms<C>) {
        let images = y.len() / self.to();
        let sizes = &self.first().step.sizes;
        let Rooms { first, of_layers, small: room, .. } = rooms;
        of_layers.resize_with(self.layers.len(), Vec::new);
        let first = grown(first, x.len());
        side_by_side::<T, C>(x, sizes.inputs, sizes.from(), first);
        let mut input: &[C] = first;
        for ((layer, kept), other) in self.layers.iter().zip(kept).zip(of_layers) {
            input = if kept.is_empty() {
                let other = grown(other, images * layer.to());
                layer.step.forward(input, other, room);
                layer.finish(other);
                other
            } else {
                layer.step.forward(input, kept, room);
                if layer.activation.slope_from_result() {
                    layer.finish(kept);
                    kept
                } else {
                    add_shift(&layer.shift, kept);
                    let other = grown(other, kept.len());
                    activate(layer.activation, kept, other);
                    other
                }
            };
        }
        let sizes = &self.last().step.sizes;
        planes(input, sizes.outputs, sizes.to(), self.shortcut.then_some(x), y);
    }

    /// The gradient of images `x`, if wanted, and those of the layers, from the result `y` and its gradient.
    pub(super) fn backward<T: Element>(
        &self,
        x: Slice<'_>,
        kept: &Kept<C>,
        y: Slice<'_>,
        grad: Slice<'_>,
        of_x: bool,
        wanted: &[Wanted],
    ) -> (Option<Vec<T>>, Vec<Sums<f64>>) {
        let len = if of_x { self.batch * self.from() } else { 0 };
        let mut dx: Vec<T> = Vec::with_capacity(len);
        // Consecutive images of a task share their sums.
        let tasks = self.batch.div_ceil(self.images);
        let images = self.images * tasks.div_ceil(PARTS).max(1);
        let mut places: Vec<&mut [MaybeUninit<T>]> = pieces(&mut dx, len, images * self.from()).collect();
        places.resize_with(self.batch.div_ceil(images), Default::default);
        let parts: Vec<Vec<Sums<C>>> = places
            .into_par_iter()
            .enumerate()
            .map_init(Rooms::default, |rooms, (i, dx)| {
                let dx = cleared(dx);
                let mut sums: Vec<_> =
                    self.layers.iter().zip(wanted).map(|(layer, &wanted)| layer.sums(wanted)).collect();
                let all = i * images..self.batch.min((i + 1) * images);
                for start in all.clone().step_by(self.images) {
                    let some = start..all.end.min(start + self.images);
                    let at = |image: usize| (image - all.start) * self.from();
                    let dx = if of_x { Some(&mut dx[at(some.start)..at(some.end)]) } else { None };
                    self.backward_task::<T>(x, kept, y, grad, some, dx, wanted, &mut sums, rooms);
                }
                sums
            })
            .collect();
        // SAFETY: the pieces cover as many elements of the spare capacity, and tasks ran on all of them, which cleared them.
        unsafe { dx.set_len(len) };
        let sums = self.layers.iter().zip(wanted).enumerate();
        let sums = sums.map(|(i, (layer, &wanted))| layer.total(wanted, parts.iter().map(|part| &part[i])));
        (of_x.then_some(dx), sums.collect())
    }

    #[expect(clippy::too_many_arguments, reason = "what a pass has, and which part of it this is")]
    fn backward_task<T: Element>(
        &self,
        x: Slice<'_>,
        kept: &Kept<C>,
        y: Slice<'_>,
        grad: Slice<'_>,
        images: std::ops::Range<usize>,
        dx: Option<&mut [T]>,
        wanted: &[Wanted],
        sums: &mut [Sums<C>],
        rooms: &mut Rooms<C>,
    ) {
        let part = |size: usize| images.start * size..images.end * size;
        let (x, y, grad) = (x.sub(part(self.from())), y.sub(part(self.to())), grad.sub(part(self.to())));
        // The first layer that has anything to compute.
        let needed = |wanted: &Wanted| wanted.weight || wanted.shift;
        let lowest = if dx.is_some() { 0 } else { wanted.iter().position(needed).unwrap_or(wanted.len()) };
        let Rooms { first: g, other, recomputed, small: room, .. } = rooms;
        let (mut g, mut other) = (g, other);
        let sizes = &self.last().step.sizes;
        side_by_side::<T, C>(grad, sizes.outputs, sizes.to(), grown(g, grad.len()));
        for i in (lowest..self.layers.len()).rev() {
            let layer = &self.layers[i];
            let grads = &mut g[..images.len() * layer.to()];
            if self.is_in_result(i) && layer.activation != ConvActivation::None {
                let y_room = grown(recomputed, y.len());
                side_by_side::<T, C>(y, sizes.outputs, sizes.to(), y_room);
                slope_and_sums(layer.activation, y_room, grads, &mut sums[i].shift, room);
            } else if layer.activation != ConvActivation::None || wanted[i].shift {
                let kept = if self.is_in_result(i) { &[] } else { &kept.0[i][part(layer.to())] };
                slope_and_sums(layer.activation, kept, grads, &mut sums[i].shift, room);
            }
            if wanted[i].weight {
                let input: &[C] = match i.checked_sub(1) {
                    None => {
                        let input = grown(recomputed, x.len());
                        let sizes = &layer.step.sizes;
                        side_by_side::<T, C>(x, sizes.inputs, sizes.from(), input);
                        input
                    }
                    Some(before) => {
                        let kept = &kept.0[before][part(self.layers[before].to())];
                        let activation = self.layers[before].activation;
                        if activation.slope_from_result() {
                            kept
                        } else {
                            let input = grown(recomputed, kept.len());
                            activate(activation, kept, input);
                            input
                        }
                    }
                };
                layer.step.add_weight_gradient(input, grads, &mut sums[i].weight, room);
            }
            if i > lowest || dx.is_some() {
                let before = images.len() * layer.step.sizes.from() * layer.step.sizes.inputs;
                layer.step.input_gradient(grads, grown(other, before), room);
                std::mem::swap(&mut g, &mut other);
            }
        }
        if let Some(dx) = dx {
            let sizes = &self.first().step.sizes;
            planes(&g[..x.len()], sizes.inputs, sizes.from(), self.shortcut.then_some(grad), dx);
        }
    }
}

impl<C: Float> Layer<C> {
    /// Elements of the result of an image.
    fn to(&self) -> usize {
        self.step.sizes.to() * self.step.sizes.outputs
    }

    fn finish(&self, y: &mut [C]) {
        if !self.shift.is_empty() {
            shift_and_activate(&self.shift, self.activation, y);
        }
    }

    fn sums(&self, wanted: Wanted) -> Sums<C> {
        let Wanted { weight, .. } = wanted;
        let len = self.step.sizes.outputs * self.step.sizes.kernel();
        Sums {
            weight: vec![C::ZERO; if weight { len } else { 0 }],
            shift: vec![0.0; self.step.sizes.outputs],
        }
    }

    /// The parts added up, in order.
    fn total<'a>(&self, wanted: Wanted, parts: impl Iterator<Item = &'a Sums<C>>) -> Sums<f64>
    where
        C: 'a,
    {
        let parts: Vec<_> = parts.collect();
        let len = self.sums(wanted).weight.len();
        let mut weight = vec![0.0; len];
        weight.par_chunks_mut(4096).enumerate().for_each(|(i, totals)| {
            for part in &parts {
                let start = i * 4096;
                add_wide(&part.weight[start..start + totals.len()], totals);
            }
        });
        let mut shift = vec![0.0; self.step.sizes.outputs];
        for part in &parts {
            shift.iter_mut().zip(&part.shift).for_each(|(total, x)| *total += x);
        }
        Sums { weight, shift }
    }
}

vectorized! {
    fn add_wide<C>(x: &[C], totals: &mut [f64]) {
        for (total, x) in totals.iter_mut().zip(x) {
            *total += x.to_f64();
        }
    }
}
