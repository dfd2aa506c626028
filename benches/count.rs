//! Launches and bytes through memory of one training step on a GPU: forward and backward, without the optimizer.
//!
//! Nothing is run. A walk over shapes follows the models of `tpgm-nn` operation by operation, and candle's `backprop.rs` on the way
//! back. That it is the graph of those models is tested: the shapes of its nodes are those of candle's own graph, on the CPU, of the
//! same networks in small, and inside their blocks those of what the blocks record.
//!
//! # What is counted
//!
//! - A launch is a kernel, a clearing of memory, or a copy. Bytes are what a launch must read and write, each operand once, as if
//!   no cache held anything from one launch to the next. A tensor that is broadcast counts with the elements that it has.
//! - candle's backward pass clears a gradient, adds the first part to it and each further one, whoever computed the part: 4 and 3
//!   times the bytes of a tensor for each place that it is used at. It computes gradients of constants too, as of masks and frozen
//!   weights. All of this is counted.
//! - Ours is with kernels for all that a block has: dropout and rotation too. A block is one operation of candle's. Inside, the first
//!   part of a gradient is the gradient, and a further one is an addition: 3 times the bytes. Its input and its parameters get
//!   theirs from candle, which clears and adds; so do the links that they hang on, numbers of four bytes, one for two parameters.
//! - Composed attention scales queries and adds a mask, a causal one too, by a broadcast. `composed::masked_softmax` takes more passes
//!   for a causal mask, which are not counted: they would be to our advantage.
//! - Matrix products are a launch each, that reads both factors and writes the product. Partial sums of columns, tables of shapes
//!   and tensors of a few numbers are left out.
//!
//! [`How::Floor`] is what no way of computing goes below that keeps activations for the backward pass: products, norms, softmax,
//! activations, losses and embeddings read and write each operand once and go back once; a sum of two branches is one read and one
//! write more; and a gradient with several parts is read once more for each. Everything else costs nothing: layouts, masks, scales,
//! casts, dropout, rotation and biases are part of their neighbors.

mod layers;
mod networks;
mod operations;
mod tape;
#[cfg(test)]
mod tests;

pub use self::networks::{Network, Sizes};
pub use self::tape::{How, Tally};

/// Forward and backward pass of a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// Of the forward pass.
    pub forward: Tally,
    /// Of the backward pass.
    pub backward: Tally,
    /// What of that candle spends to clear gradients and to add up their parts.
    pub parts: Tally,
}

impl Step {
    /// Both.
    pub fn total(self) -> Tally {
        self.forward + self.backward
    }
}

/// The step of a network whose elements have so many bytes: 4 for f32, 2 for bf16.
pub fn count(network: Network, how: How, element: u64) -> Step {
    let mut tape = tape::Tape::new(how, element);
    networks::step(&mut tape, network);
    tape.step()
}

/// A table of all networks, in f32 and bf16.
pub fn table() -> String {
    let mut lines = vec![format!(
        "{:<44} {:<5} {:<8} {:>9} {:>9} {:>20}",
        "one step, without the optimizer", "type", "", "launches", "GB", "GB of gradients' sums"
    )];
    let gigabytes = |tally: Tally| tally.bytes as f64 / 1e9;
    for network in Network::ALL {
        for (element, bytes) in [("f32", 4), ("bf16", 2)] {
            for how in [How::Composed, How::Ours, How::Floor] {
                let step = count(network, how, bytes);
                lines.push(format!(
                    "{:<44} {element:<5} {:<8} {:>9} {:>9.2} {:>20.2}",
                    network.name(),
                    how.name(),
                    step.total().launches,
                    gigabytes(step.total()),
                    gigabytes(step.parts)
                ));
            }
        }
    }
    lines.join("\n")
}
