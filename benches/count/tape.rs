//! Tensors without values, and a tally of what operations on them cost, forward and backward.

use std::ops::{Add, AddAssign};

use super::Step;

/// How layers are computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// Of candle's operations: `tpgm_nn::composed`.
    Composed,
    /// By kernels where there are some: `tpgm_nn` with the feature `cuda`.
    Ours,
    /// See the head of the module.
    Floor,
    /// On the CPU, where products, rotations and dropout are operations of their own too: to compare graphs.
    Cpu,
}

impl How {
    /// For tables.
    pub fn name(self) -> &'static str {
        match self {
            How::Composed => "composed",
            How::Ours => "ours",
            How::Floor => "floor",
            How::Cpu => "cpu",
        }
    }
}

/// What something costs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tally {
    /// Kernels, clearings and copies.
    pub launches: u64,
    /// Read and written.
    pub bytes: u64,
}

impl Add for Tally {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { launches: self.launches + other.launches, bytes: self.bytes + other.bytes }
    }
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

/// A tensor.
#[derive(Debug, Clone)]
pub(super) struct T {
    pub(super) id: usize,
    pub(super) dims: Vec<usize>,
    /// Bytes of an element.
    pub(super) element: u64,
    /// Bytes in memory: fewer than elements where it is broadcast.
    pub(super) held: u64,
    /// True if gradients flow through it.
    pub(super) tracked: bool,
    pub(super) dense: bool,
}

impl T {
    pub(super) fn len(&self) -> u64 {
        self.dims.iter().map(|&size| size as u64).product()
    }

    /// Bytes if it were written out.
    pub(super) fn bytes(&self) -> u64 {
        self.len() * self.element
    }

    pub(super) fn last(&self) -> usize {
        self.dims.len() - 1
    }
}

pub(super) struct Tape {
    pub(super) how: How,
    /// Bytes of an element of the network.
    pub(super) element: u64,
    forward: Tally,
    backward: Tally,
    /// Of the backward pass, what clears gradients and adds up their parts.
    parts: Tally,
    /// Whether a gradient has a part already, of every tensor.
    begun: Vec<bool>,
    /// Shapes of the nodes of the graph, leaves among them.
    pub(super) nodes: Vec<Vec<usize>>,
}

impl Tape {
    pub(super) fn new(how: How, element: u64) -> Self {
        Self {
            how,
            element,
            forward: Tally::default(),
            backward: Tally::default(),
            parts: Tally::default(),
            begun: vec![],
            nodes: vec![],
        }
    }

    pub(super) fn step(&self) -> Step {
        Step { forward: self.forward, backward: self.backward, parts: self.parts }
    }

    /// A launch or several that the floor has too.
    pub(super) fn forward(&mut self, launches: u64, bytes: u64) {
        self.forward += Tally { launches, bytes };
    }

    /// As [`Tape::forward`].
    pub(super) fn backward(&mut self, launches: u64, bytes: u64) {
        self.backward += Tally { launches, bytes };
    }

    /// What the floor does without.
    pub(super) fn spend(&mut self, launches: u64, bytes: u64) {
        if self.how != How::Floor {
            self.forward(launches, bytes);
        }
    }

    /// As [`Tape::spend`].
    pub(super) fn spend_back(&mut self, launches: u64, bytes: u64) {
        if self.how != How::Floor {
            self.backward(launches, bytes);
        }
    }

    fn tensor(&mut self, dims: &[usize], element: u64, tracked: bool) -> T {
        if tracked {
            self.nodes.push(dims.to_vec());
        }
        self.begun.push(false);
        let held = dims.iter().map(|&size| size as u64).product::<u64>() * element;
        T { id: self.begun.len() - 1, dims: dims.to_vec(), element, held, tracked, dense: true }
    }

    /// A parameter that is trained.
    pub(super) fn variable(&mut self, dims: &[usize], element: u64) -> T {
        self.tensor(dims, element, true)
    }

    /// Data, or a frozen parameter.
    pub(super) fn constant(&mut self, dims: &[usize], element: u64) -> T {
        self.tensor(dims, element, false)
    }

    /// The result of an operation.
    pub(super) fn node(&mut self, dims: &[usize], element: u64, of: &[&T]) -> T {
        self.tensor(dims, element, of.iter().any(|of| of.tracked))
    }

    /// A part of a tensor's gradient, of which the sum reads so many bytes.
    pub(super) fn part(&mut self, to: &T, reads: u64) {
        let (bytes, before) = (to.bytes(), self.backward);
        if !std::mem::replace(&mut self.begun[to.id], true) {
            self.spend_back(1, bytes);
        } else if self.how == How::Floor {
            self.backward(0, bytes);
        }
        self.spend_back(1, 2 * bytes + reads);
        self.parts += Tally {
            launches: self.backward.launches - before.launches,
            bytes: self.backward.bytes - before.bytes,
        };
    }

    /// A part of a tensor's gradient that an operation has written out.
    pub(super) fn edge(&mut self, to: &T) {
        self.part(to, to.bytes());
    }

    /// An operation of ours: launches and bytes of both passes, and who gets a gradient.
    pub(super) fn kernel(
        &mut self,
        dims: &[usize],
        element: u64,
        of: &[&T],
        forward: (u64, u64),
        backward: (u64, u64),
    ) -> T {
        let y = self.node(dims, element, of);
        self.forward(forward.0, forward.1);
        if y.tracked {
            self.backward(backward.0, backward.1);
            for of in of.iter().filter(|of| of.tracked) {
                self.edge(of);
            }
        }
        y
    }
}
