//! Tensors without values, and a tally of what operations on them cost, forward and backward.

use std::collections::HashSet;
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
    /// Shapes of the nodes of candle's graph, leaves among them.
    pub(super) nodes: Vec<Vec<usize>>,
    /// Shapes of what gradients flow through inside blocks.
    pub(super) inner: Vec<Vec<usize>>,
    block: Option<Block>,
}

/// A block that is one operation of candle's.
#[derive(Default)]
struct Block {
    made: HashSet<usize>,
    /// Its input and parameters that want a gradient.
    leaves: Vec<T>,
    /// What has a part of its gradient.
    begun: HashSet<usize>,
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
            inner: vec![],
            block: None,
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
        self.begun.push(false);
        let held = dims.iter().map(|&size| size as u64).product::<u64>() * element;
        T { id: self.begun.len() - 1, dims: dims.to_vec(), element, held, tracked, dense: true }
    }

    /// A parameter that is trained.
    pub(super) fn variable(&mut self, dims: &[usize], element: u64) -> T {
        self.nodes.push(dims.to_vec());
        self.tensor(dims, element, true)
    }

    /// Data, or a frozen parameter.
    pub(super) fn constant(&mut self, dims: &[usize], element: u64) -> T {
        self.tensor(dims, element, false)
    }

    /// The result of an operation.
    pub(super) fn node(&mut self, dims: &[usize], element: u64, of: &[&T]) -> T {
        let y = self.tensor(dims, element, of.iter().any(|of| of.tracked));
        if let Some(block) = &mut self.block {
            for of in of.iter().filter(|of| of.tracked && !block.made.contains(&of.id)) {
                if !block.leaves.iter().any(|leaf| leaf.id == of.id) {
                    block.leaves.push((*of).clone());
                }
            }
            block.made.insert(y.id);
        }
        if y.tracked {
            let nodes = if self.block.is_some() { &mut self.inner } else { &mut self.nodes };
            nodes.push(dims.to_vec());
        }
        y
    }

    /// The result of an operation that is not on a block's tape: another shape of the same elements.
    pub(super) fn view(&mut self, dims: &[usize], of: &T) -> T {
        let recorded = self.inner.len();
        let y = self.node(dims, of.element, &[of]);
        self.inner.truncate(recorded);
        y
    }

    /// A block of layers: one operation of candle's, with a tape inside. Composed it is none.
    pub(super) fn block(&mut self, layers: impl FnOnce(&mut Self) -> T) -> T {
        if !matches!(self.how, How::Ours | How::Cpu) {
            return layers(self);
        }
        self.block = Some(Block::default());
        let y = layers(self);
        let leaves = self.block.take().map(|block| block.leaves).unwrap_or_default();
        if !y.tracked {
            return y;
        }
        // A link takes three leaves, or the link before and two.
        let links = leaves.len().saturating_sub(1).div_ceil(2).max(1) as u64;
        self.nodes.extend((0..links).map(|_| vec![]));
        self.nodes.push(y.dims.clone());
        // Numbers of four bytes, cleared and added to.
        self.backward(2 * links, (4 + 12) * links);
        self.parts += Tally { launches: 2 * links, bytes: (4 + 12) * links };
        leaves.iter().for_each(|leaf| self.edge(leaf));
        y
    }

    /// A part of a tensor's gradient, of which the sum reads so many bytes.
    pub(super) fn part(&mut self, to: &T, reads: u64) {
        let (bytes, before) = (to.bytes(), self.backward);
        if let Some(block) = &mut self.block {
            // The first part is the gradient.
            if !block.begun.insert(to.id) {
                self.backward(1, 2 * bytes + reads);
                self.parts += Tally { launches: 1, bytes: 2 * bytes + reads };
            }
            return;
        }
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

    /// A kernel adds the next part of a tensor's gradient to the one before.
    pub(super) fn carried(&mut self, to: &T) {
        if let Some(block) = &mut self.block {
            block.begun.remove(&to.id);
        }
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
