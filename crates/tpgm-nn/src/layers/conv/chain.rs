//! Convolutions one after the other, each with shift and activation, and a way around them, a few images at a time.
//!
//! A task takes a few images through all layers, forward or backward, on one thread: what lies between two layers is read while
//! it is in the cache, and written only where the backward pass needs it. How many images a task takes depends on sizes alone, so
//! results have the same bits on any number of threads.

mod backward;

use std::mem::MaybeUninit;
use std::ops::Range;

use rayon::prelude::*;
use tpgm_core::{Element, Slice};

pub(super) use self::backward::Wanted;
use super::finish::{activate_in_place, add_shift, shift_and_activate};
use super::layout::{Image, Order, copy, grown, pixels, uninit, write_pixels};
use super::sizes::Sizes;
use super::step::Step;
use crate::layers::conv_norm::ConvActivation;
use crate::layers::float::{Float, accumulate};
use crate::layers::storage::pieces;

/// Elements of the largest image between two layers that a task has at a time, at most, unless a single image has more.
const ELEMENTS: usize = 128 * 1024;

/// Images that a task may have beyond that if there are many of them, so that few tasks share out the work: one of so many.
const SHARES: usize = 16;

/// A convolution with what follows it.
#[derive(Debug)]
pub(super) struct Layer<C> {
    pub(super) step: Step<C>,
    /// What is added to each output; empty for nothing.
    pub(super) shift: Vec<C>,
    pub(super) activation: ConvActivation,
}

/// What is added to the result of the layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Around {
    /// Nothing.
    Nothing,
    /// Their input.
    Input,
    /// What another layer makes of their input.
    Layer,
}

/// Several layers, what goes around them, and what follows the sum.
#[derive(Debug)]
pub(super) struct Chain<C> {
    /// Those one after the other, and behind them the one around them, if there is one.
    layers: Vec<Layer<C>>,
    around: Around,
    activation: ConvActivation,
    /// Those of the input and the result.
    orders: [Order; 2],
    batch: usize,
    /// Images of a task.
    images: usize,
}

/// What the backward pass needs of the forward one: for each layer its result, or what its activation was applied to, and behind
/// them what the activation of the sum was applied to. Empty where that is not needed, or the result of the whole says it.
#[derive(Debug)]
pub(super) struct Kept<C>(Vec<Vec<C>>);

/// What a task of the forward pass writes: results, and what is kept.
type Task<'a, T, C> = (&'a mut [MaybeUninit<T>], Vec<&'a mut [MaybeUninit<C>]>);

/// Memory that tasks use one after the other.
#[derive(Debug)]
struct Rooms<C> {
    input: Vec<C>,
    result: Vec<C>,
    of_layers: Vec<Vec<C>>,
    grad: Vec<C>,
    grads: [Vec<C>; 2],
    recomputed: Vec<C>,
    small: [Vec<C>; 2],
}

impl<C> Default for Rooms<C> {
    fn default() -> Self {
        Self {
            input: vec![],
            result: vec![],
            of_layers: vec![],
            grad: vec![],
            grads: [vec![], vec![]],
            recomputed: vec![],
            small: [vec![], vec![]],
        }
    }
}

impl<C: Float> Chain<C> {
    /// Of at least one layer besides the one around them, whose sizes fit.
    pub(super) fn new(
        layers: Vec<Layer<C>>,
        around: Around,
        activation: ConvActivation,
        orders: [Order; 2],
        batch: usize,
    ) -> Self {
        let sizes = layers.iter().map(|layer| &layer.step.sizes);
        let largest = sizes.map(|s| s.input().len().max(s.output().len())).max().unwrap_or(0);
        // Each task reads all weights, and writes their gradients: where they are larger than the images, for more images at once.
        let weights: usize = layers.iter().map(|layer| layer.step.sizes.weight()).sum();
        let for_weights = (weights / largest.max(1)).min((batch / SHARES).max(2));
        let images = (ELEMENTS / largest.max(1)).max(for_weights).clamp(1, batch.max(1));
        // A power of two shares out evenly among the usual numbers of threads.
        let tasks = batch.div_ceil(images).next_power_of_two();
        let images = batch.div_ceil(tasks).max(1);
        Self { layers, around, activation, orders, batch, images }
    }

    /// The layers one after the other.
    fn path(&self) -> &[Layer<C>] {
        &self.layers[..self.layers.len() - usize::from(self.around == Around::Layer)]
    }

    fn layer_around(&self) -> Option<&Layer<C>> {
        self.layers.last().filter(|_| self.around == Around::Layer)
    }

    fn input(&self) -> Image {
        self.layers[0].step.sizes.input()
    }

    fn output(&self) -> Image {
        let path = self.path();
        path[path.len() - 1].step.sizes.output()
    }

    /// The sizes of its layers.
    pub(super) fn sizes(&self) -> impl Iterator<Item = &Sizes> {
        self.layers.iter().map(|layer| &layer.step.sizes)
    }

    /// Whether the slope of a layer's activation is known from the result of the whole.
    fn is_result(&self, layer: usize) -> bool {
        let whole = self.around == Around::Nothing && self.activation == ConvActivation::None;
        whole && layer + 1 == self.layers.len() && self.layers[layer].activation.slope_from_result()
    }

    /// How many elements of each image are kept of each layer and of the sum.
    fn kept(&self) -> Vec<usize> {
        let path = self.path().len();
        let of_layer = |(i, layer): (usize, &Layer<C>)| {
            // Behind the last one, and the one around them, what follows needs nothing of them.
            let needed = i + 1 < path || layer.activation != ConvActivation::None;
            if needed && !self.is_result(i) { layer.step.sizes.output().len() } else { 0 }
        };
        let mut kept: Vec<usize> = self.layers.iter().enumerate().map(of_layer).collect();
        kept.push(if self.activation.slope_from_result() { 0 } else { self.output().len() });
        kept
    }

    /// The result of images `x`, and what is needed to go back if that is wanted.
    pub(super) fn forward<T: Element>(&self, x: Slice<'_>, keep: bool) -> (Vec<T>, Kept<C>) {
        let (from, to) = (self.input().len(), self.output().len());
        let mut y = Vec::with_capacity(self.batch * to);
        let lens: Vec<usize> = self.kept().into_iter().map(|len| if keep { len } else { 0 }).collect();
        let mut kept: Vec<Vec<C>> = lens.iter().map(|len| Vec::with_capacity(self.batch * len)).collect();
        {
            let mut tasks: Vec<Task<'_, T, C>> =
                pieces(&mut y, self.batch * to, self.images * to).map(|y| (y, vec![])).collect();
            for (kept, len) in kept.iter_mut().zip(&lens) {
                let mut pieces = pieces(kept, self.batch * len, self.images * len);
                for (_, kept) in &mut tasks {
                    kept.push(pieces.next().unwrap_or_default());
                }
            }
            tasks.into_par_iter().enumerate().for_each_init(Rooms::default, |rooms, (i, (y, kept))| {
                let start = i * self.images * from;
                self.forward_task::<T>(x.sub(start..start + y.len() / to * from), kept, y, rooms);
            });
        }
        // SAFETY: the pieces cover as many elements of the spare capacity, and tasks ran on all of them, which wrote them.
        unsafe {
            y.set_len(self.batch * to);
            for (kept, len) in kept.iter_mut().zip(&lens) {
                kept.set_len(self.batch * len);
            }
        }
        (y, Kept(kept))
    }

    /// Writes all elements of `kept` and `y`.
    fn forward_task<T: Element>(
        &self,
        x: Slice<'_>,
        mut kept: Vec<&mut [MaybeUninit<C>]>,
        y: &mut [MaybeUninit<T>],
        rooms: &mut Rooms<C>,
    ) {
        let images = y.len() / self.output().len();
        let Rooms { input, result, of_layers, recomputed, small: [small, _], .. } = rooms;
        of_layers.resize_with(self.layers.len(), Vec::new);
        let x = pixels(x, self.orders[0], self.input(), input);
        let of_sum = kept.pop().unwrap_or_default();
        let around: &[C] = match self.layer_around() {
            None if self.around == Around::Input => x,
            None => &[],
            Some(layer) => {
                let kept = kept.pop().unwrap_or_default();
                let to = grown(recomputed, images * layer.step.sizes.output().len());
                layer.forward(x, kept, uninit(to), small, |_, _| ());
                to
            }
        };
        let mut input: &[C] = x;
        let last_kept = kept.pop().unwrap_or_default();
        for ((layer, kept), other) in self.path().iter().zip(kept).zip(of_layers) {
            let other = grown(other, images * layer.step.sizes.output().len());
            input = layer.forward_into(input, kept, other, small);
        }
        let last = &self.path()[self.path().len() - 1];
        write_pixels::<T, C>(y, self.orders[1], self.output(), result, |y| {
            let channels = self.output().channels;
            last.forward(input, last_kept, y, small, |rows, y| {
                let elements = rows.start * channels..rows.end * channels;
                if self.around != Around::Nothing {
                    accumulate(&around[elements.clone()], y);
                }
                if !of_sum.is_empty() {
                    copy(y, &mut of_sum[elements]);
                }
                activate_in_place(self.activation, y);
            });
        });
    }
}

impl<C: Float> Layer<C> {
    /// Writes the result of some images to `to`, and what is kept of it, if there is room for that. Calls `done` with rows of the
    /// result while they are in the cache.
    fn forward<'a>(
        &self,
        x: &[C],
        kept: &mut [MaybeUninit<C>],
        to: &'a mut [MaybeUninit<C>],
        small: &mut Vec<C>,
        mut done: impl FnMut(Range<usize>, &mut [C]),
    ) -> &'a mut [C] {
        let channels = self.step.sizes.outputs;
        self.step.forward(x, to, small, |rows, y| {
            let elements = rows.start * channels..rows.end * channels;
            if kept.is_empty() {
                self.finish(y);
            } else if self.activation.slope_from_result() {
                self.finish(y);
                copy(y, &mut kept[elements]);
            } else {
                add_shift(&self.shift, y);
                copy(y, &mut kept[elements]);
                activate_in_place(self.activation, y);
            }
            done(rows, y);
        })
    }

    /// The result of some images: among what is kept if it is, else in `other`.
    fn forward_into<'a>(
        &self,
        x: &[C],
        kept: &'a mut [MaybeUninit<C>],
        other: &'a mut [C],
        small: &mut Vec<C>,
    ) -> &'a [C] {
        if kept.is_empty() || !self.activation.slope_from_result() {
            self.forward(x, kept, uninit(other), small, |_, _| ())
        } else {
            self.forward(x, &mut [], kept, small, |_, _| ())
        }
    }

    fn finish(&self, y: &mut [C]) {
        if self.shift.is_empty() {
            activate_in_place(self.activation, y);
        } else {
            shift_and_activate(&self.shift, self.activation, y);
        }
    }
}
