//! The layers of `tpgm-nn`, composed as in its `composed.rs`, and by kernels.

use super::operations::{One, Two};
use super::tape::{How, T, Tape};

/// Weights and biases, trained or frozen.
pub(super) struct Linear {
    pub(super) weight: T,
    pub(super) bias: Option<T>,
}

/// What a norm multiplies by and adds.
pub(super) struct Norm {
    pub(super) weight: T,
    pub(super) bias: Option<T>,
}

impl Tape {
    fn composed(&self) -> bool {
        self.how == How::Composed
    }

    /// True for layers that are operations of their own: not for candle's, and not for the floor, which is walked as those are.
    fn own(&self) -> bool {
        matches!(self.how, How::Ours | How::Cpu)
    }

    /// What is computed on: kernels and candle's operations read rows with gaps, the CPU's layers do not.
    fn taken(&mut self, x: &T) -> T {
        if self.how == How::Cpu { self.contiguous(x) } else { x.clone() }
    }

    /// Layer norm, or RMS norm where there is no bias.
    pub(super) fn norm(&mut self, x: &T, norm: &Norm) -> T {
        let layer_norm = norm.bias.is_some();
        let x = &self.taken(x);
        if !self.composed() {
            let of: Vec<&T> = [x, &norm.weight].into_iter().chain(&norm.bias).collect();
            let launches = if norm.weight.tracked && self.how != How::Floor { 2 } else { 1 };
            return self.kernel(&x.dims, x.element, &of, (1, 2 * x.bytes()), (launches, 3 * x.bytes()));
        }
        let wide = self.cast(x, 4);
        let centered = if layer_norm {
            let mean = self.mean_last(&wide);
            self.broadcast_two(Two::Sub, &wide, &mean)
        } else {
            wide
        };
        let squares = self.one(One::Sqr, &centered);
        let variance = self.mean_last(&squares);
        let safe = self.one(One::Affine, &variance);
        let deviation = self.one(One::Sqrt, &safe);
        let y = self.broadcast_two(Two::Div, &centered, &deviation);
        let weight = self.cast(&norm.weight, 4);
        let mut y = self.broadcast_two(Two::Mul, &y, &weight);
        if let Some(bias) = &norm.bias {
            let bias = self.cast(bias, 4);
            y = self.broadcast_two(Two::Add, &y, &bias);
        }
        self.cast(&y, x.element)
    }

    fn mean_last(&mut self, x: &T) -> T {
        let sum = self.sum_last(x);
        self.one(One::Affine, &sum)
    }

    pub(super) fn softmax(&mut self, x: &T) -> T {
        if !self.composed() {
            return self.kernel(&x.dims, x.element, &[x], (1, 2 * x.bytes()), (1, 3 * x.bytes()));
        }
        let wide = self.cast(x, 4);
        let largest = self.max_last_detached(&wide);
        let shifted = self.broadcast_two(Two::Sub, &wide, &largest);
        let e = self.one(One::Exp, &shifted);
        let sum = self.sum_last(&e);
        let y = self.broadcast_two(Two::Div, &e, &sum);
        self.cast(&y, x.element)
    }

    /// The loss of logits of shape (rows, classes).
    pub(super) fn cross_entropy(&mut self, logits: &T) -> T {
        let bytes = logits.bytes();
        if !self.composed() {
            // The losses of rows, their mean, which is copied; in the floor all is one.
            let launches = if self.how == How::Floor { 1 } else { 3 };
            return self.kernel(&[], 4, &[logits], (launches, bytes), (1, 2 * bytes));
        }
        let wide = self.cast(logits, 4);
        let largest = self.max_last_detached(&wide);
        let shifted = self.broadcast_two(Two::Sub, &wide, &largest);
        let e = self.one(One::Exp, &shifted);
        let sum = self.sum_last(&e);
        let log_sum = self.one(One::Log, &sum);
        let log_p = self.broadcast_two(Two::Sub, &shifted, &log_sum);
        let of_label = self.gather_one(&log_p);
        let sum = self.sum_all(&of_label);
        self.one(One::Affine, &sum)
    }

    pub(super) fn gelu(&mut self, x: &T) -> T {
        if !self.composed() {
            return self.kernel(&x.dims, x.element, &[x], (1, 2 * x.bytes()), (1, 3 * x.bytes()));
        }
        let wide = self.cast(x, 4);
        let y = self.one(One::GeluErf, &wide);
        self.cast(&y, x.element)
    }

    pub(super) fn gated_silu(&mut self, gate: &T, up: &T) -> T {
        if !self.composed() {
            let bytes = gate.bytes();
            return self.kernel(&gate.dims, gate.element, &[gate, up], (1, 3 * bytes), (1, 5 * bytes));
        }
        let wide = self.cast(gate, 4);
        let y = self.one(One::Silu, &wide);
        let y = self.cast(&y, gate.element);
        self.two(Two::Mul, &y, up)
    }

    pub(super) fn linear(&mut self, x: &T, layer: &Linear) -> T {
        let [outputs, inputs] = [layer.weight.dims[0], layer.weight.dims[1]];
        let mut dims = x.dims.clone();
        *dims.last_mut().expect("rows") = outputs;
        let rows = x.dims[..x.dims.len() - 1].iter().product();
        if self.composed() {
            let x = self.reshape(x, &[rows, inputs]);
            let weight = self.transpose(&layer.weight, 0, 1);
            let mut y = self.matmul(&x, &weight);
            if let Some(bias) = &layer.bias {
                y = self.broadcast_two(Two::Add, &y, bias);
            }
            return self.reshape(&y, &dims);
        }
        let x = self.contiguous(x);
        let weight = &layer.weight;
        let of: Vec<&T> = [&x, weight].into_iter().chain(&layer.bias).collect();
        let y = self.kernel(&dims, x.element, &of, (1, 0), (0, 0));
        let product = x.bytes() + weight.bytes() + y.bytes();
        self.forward(0, product);
        if layer.bias.is_some() {
            self.spend(1, 2 * y.bytes());
        }
        if y.tracked {
            [&x, weight].into_iter().filter(|of| of.tracked).for_each(|_| self.backward(1, product));
            if layer.bias.as_ref().is_some_and(|bias| bias.tracked) {
                self.spend_back(2, y.bytes());
            }
        }
        y
    }

    /// A linear layer and an activation, GELU, with the layer's bias inside.
    pub(super) fn linear_gelu(&mut self, x: &T, layer: &Linear) -> T {
        let Some(bias) = layer.bias.as_ref().filter(|_| self.own()) else {
            let x = self.linear(x, layer);
            return self.gelu(&x);
        };
        let y = self.linear(x, &Linear { weight: layer.weight.clone(), bias: None });
        let launches = if bias.tracked { 2 } else { 1 };
        self.kernel(&y.dims, y.element, &[&y, bias], (1, 2 * y.bytes()), (launches, 3 * y.bytes()))
    }

    /// `x + y` and its norm. `goes_on` says whether the sum is used elsewhere too.
    pub(super) fn add_norm(&mut self, x: &T, y: &T, norm: &Norm, goes_on: bool) -> [T; 2] {
        if !self.own() {
            let sum = self.two(Two::Add, x, y);
            let normed = self.norm(&sum, norm);
            return [sum, normed];
        }
        let bytes = x.bytes();
        let sum = self.node(&x.dims, x.element, &[x, y]);
        let of: Vec<&T> = [&sum, &norm.weight].into_iter().chain(&norm.bias).collect();
        let launches = if norm.weight.tracked { 2 } else { 1 };
        // Sum, gradient and what the sum gets from elsewhere are read.
        let read = if goes_on { 3 } else { 2 };
        let y_normed = self.kernel(&x.dims, x.element, &of, (1, 4 * bytes), (launches, (read + 1) * bytes));
        if sum.tracked {
            [x, y].into_iter().filter(|of| of.tracked).for_each(|of| self.edge(of));
        }
        if goes_on && sum.tracked {
            // What comes from elsewhere is the first part, and the kernel has added it.
            self.carried(&sum);
        }
        [sum, y_normed]
    }

    /// `x + y`
    pub(super) fn add(&mut self, x: &T, y: &T) -> T {
        if !self.own() {
            return self.two(Two::Add, x, y);
        }
        self.kernel(&x.dims, x.element, &[x, y], (1, 3 * x.bytes()), (0, 0))
    }

    /// Times a number.
    pub(super) fn scale(&mut self, x: &T) -> T {
        if !self.own() {
            return self.one(One::Affine, x);
        }
        self.kernel(&x.dims, x.element, &[x], (1, 2 * x.bytes()), (1, 2 * x.bytes()))
    }

    /// From (batch, length, heads * width) to (batch, heads, length, width).
    pub(super) fn split_heads(&mut self, x: &T, heads: usize) -> T {
        let (batch, length, width) = (x.dims[0], x.dims[1], x.dims[2] / heads);
        if self.own() {
            let both = 2 * x.bytes();
            return self.kernel(&[batch, heads, length, width], x.element, &[x], (1, both), (1, both));
        }
        let x = self.reshape(x, &[batch, length, heads, width]);
        let x = self.transpose(&x, 1, 2);
        self.contiguous(&x)
    }

    /// From (batch, heads, length, width) to (batch, length, heads * width).
    pub(super) fn merge_heads(&mut self, x: &T) -> T {
        let (batch, heads, length, width) = (x.dims[0], x.dims[1], x.dims[2], x.dims[3]);
        if self.own() {
            let both = 2 * x.bytes();
            return self.kernel(&[batch, length, heads * width], x.element, &[x], (1, both), (1, both));
        }
        let x = self.transpose(x, 1, 2);
        let x = self.contiguous(&x);
        self.reshape(&x, &[batch, length, heads * width])
    }

    /// Attention of (batch, heads, queries, width) over keys and values of (batch, groups, keys, width).
    pub(super) fn attention_of(&mut self, [query, key, value]: [&T; 3], mask: Option<&T>, drops: bool) -> T {
        let (batch, heads, queries, width) = (query.dims[0], query.dims[1], query.dims[2], query.dims[3]);
        let (groups, keys) = (key.dims[1], key.dims[2]);
        let rows = heads / groups * queries;
        let query =
            if groups == heads { query.clone() } else { self.reshape(query, &[batch, groups, rows, width]) };
        let query = if self.own() { query } else { self.one(One::Affine, &query) };
        let scores = self.product(&query, key, true);
        let mut weights = match (self.own(), mask) {
            // With scale and mask inside.
            (true, _) | (false, None) => self.softmax(&scores),
            (false, Some(mask)) => {
                let scores = if groups == heads {
                    scores
                } else {
                    self.reshape(&scores, &[batch, heads, queries, keys])
                };
                let scores = self.broadcast_two(Two::Add, &scores, mask);
                let weights = self.softmax(&scores);
                if groups == heads { weights } else { self.reshape(&weights, &[batch, groups, rows, keys]) }
            }
        };
        if drops {
            weights = self.dropout(&weights);
        }
        let mixed = self.product(&weights, value, false);
        let mixed =
            if groups == heads { mixed } else { self.reshape(&mixed, &[batch, heads, queries, width]) };
        self.merge_heads(&mixed)
    }

    /// `x y`, or `x y^T`, of batches of matrices.
    pub(super) fn product(&mut self, x: &T, y: &T, transposed: bool) -> T {
        let (x, y) = (self.contiguous(x), self.contiguous(y));
        let last = y.dims.len() - 1;
        if self.own() {
            let mut dims = x.dims.clone();
            dims[last] = y.dims[if transposed { last - 1 } else { last }];
            let z = self.kernel(&dims, x.element, &[&x, &y], (1, 0), (0, 0));
            let bytes = x.bytes() + y.bytes() + z.bytes();
            self.forward(0, bytes);
            for of in [&x, &y] {
                if of.tracked {
                    self.backward(1, bytes);
                }
            }
            return z;
        }
        let y = if transposed { self.transpose(&y, last, last - 1) } else { y };
        self.matmul(&x, &y)
    }

    /// Composed, with a mask that the host makes.
    pub(super) fn dropout(&mut self, x: &T) -> T {
        if self.own() {
            let x = &self.taken(x);
            return self.kernel(&x.dims, x.element, &[x], (1, 2 * x.bytes()), (1, 2 * x.bytes()));
        }
        let mask = self.constant(&x.dims, x.element);
        self.spend(1, mask.bytes());
        self.two(Two::Mul, x, &mask)
    }

    /// By angles of shape (steps, half the width), the same for all heads.
    pub(super) fn rope(&mut self, x: &T, cos: &T, sin: &T) -> T {
        if self.own() {
            return self.kernel(&x.dims, x.element, &[x], (1, 2 * x.bytes()), (1, 2 * x.bytes()));
        }
        let (last, half) = (x.dims.len() - 1, x.dims[x.dims.len() - 1] / 2);
        let wide = self.cast(x, 4);
        let (first, second) = (self.narrow(&wide, last, 0, half), self.narrow(&wide, last, half, half));
        let (cos, sin) = (self.cast(cos, 4), self.cast(sin, 4));
        let mut side = |a: &T, of_a: &T, two, b: &T, of_b: &T| {
            let a = self.broadcast_two(Two::Mul, a, of_a);
            let b = self.broadcast_two(Two::Mul, b, of_b);
            self.two(two, &a, &b)
        };
        let y_first = side(&first, &cos, Two::Sub, &second, &sin);
        let y_second = side(&first, &sin, Two::Add, &second, &cos);
        let y = self.cat(&[&y_first, &y_second], last);
        self.cast(&y, x.element)
    }
}
