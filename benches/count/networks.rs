//! The networks: `bert.rs`, `image.rs`, `llama.rs`, `transformer.rs` and `attention.rs` of `tpgm-nn`, line by line.

use super::layers::{Linear, Norm};
use super::operations::Two;
use super::tape::{T, Tape};

/// A network and a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Network {
    /// A BERT with a head on its first token, all of it trained, with dropout.
    Bert(Sizes),
    /// A ViT with a head on its class token, all of it trained.
    Vit(Sizes),
    /// A Llama whose linear layers in the blocks have LoRA factors in f32, the rest frozen; the loss of every token but the first.
    Llama {
        /// Sizes; `length` counts the tokens of a sequence.
        sizes: Sizes,
        /// Heads of keys and values.
        groups: usize,
        /// Of the factors.
        rank: usize,
    },
}

/// Sizes of a transformer and of its batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizes {
    /// Sequences or images.
    pub batch: usize,
    /// Tokens; of an image, its patches.
    pub length: usize,
    /// Side of a patch in pixels, of three colors.
    pub patch: usize,
    /// Width of a token.
    pub size: usize,
    /// Heads of an attention.
    pub heads: usize,
    /// Width inside a feed-forward block.
    pub inner: usize,
    /// Blocks.
    pub blocks: usize,
    /// Rows of the table of tokens.
    pub vocabulary: usize,
    /// Rows of the table of positions.
    pub positions: usize,
    /// Outputs of the head.
    pub classes: usize,
}

impl Network {
    /// BERT-base on 32 texts of 128 tokens.
    pub const BERT_BASE: Self = Self::Bert(Sizes {
        batch: 32,
        length: 128,
        patch: 0,
        size: 768,
        heads: 12,
        inner: 3072,
        blocks: 12,
        vocabulary: 30522,
        positions: 512,
        classes: 2,
    });

    /// ViT-B/16 on 64 images of 224 pixels a side.
    pub const VIT_B_16: Self = Self::Vit(Sizes {
        batch: 64,
        length: 196,
        patch: 16,
        size: 768,
        heads: 12,
        inner: 3072,
        blocks: 12,
        vocabulary: 0,
        positions: 197,
        classes: 1000,
    });

    /// Llama-3.2-1B with LoRA of rank 16 on 4 sequences of 513 tokens, of which 512 are read.
    pub const LLAMA_1B: Self = Self::Llama {
        sizes: Sizes {
            batch: 4,
            length: 513,
            patch: 0,
            size: 2048,
            heads: 32,
            inner: 8192,
            blocks: 16,
            vocabulary: 128_256,
            positions: 0,
            classes: 0,
        },
        groups: 8,
        rank: 16,
    };

    /// Those of the table.
    pub const ALL: [Self; 3] = [Self::BERT_BASE, Self::VIT_B_16, Self::LLAMA_1B];

    /// For tables.
    pub fn name(self) -> String {
        match self {
            Network::Bert(Sizes { blocks, batch, length, .. }) => {
                format!("BERT, {blocks} blocks, {batch} texts of {length}")
            }
            Network::Vit(Sizes { blocks, batch, length, .. }) => {
                format!("ViT, {blocks} blocks, {batch} images of {length} patches")
            }
            Network::Llama { sizes: Sizes { blocks, batch, length, .. }, .. } => {
                format!("Llama with LoRA, {blocks} blocks, {batch} texts of {length}")
            }
        }
    }
}

/// Forward and backward.
pub(super) fn step(tape: &mut Tape, network: Network) {
    let logits = match network {
        Network::Bert(sizes) => bert(tape, &sizes),
        Network::Vit(sizes) => vit(tape, &sizes),
        Network::Llama { sizes, groups, rank } => llama(tape, &sizes, groups, rank),
    };
    let loss = tape.cross_entropy(&logits);
    // Its own gradient is one.
    tape.spend_back(1, loss.bytes());
}

impl Tape {
    fn trained(&mut self, inputs: usize, outputs: usize) -> Linear {
        let element = self.element;
        let bias = Some(self.variable(&[outputs], element));
        Linear { weight: self.variable(&[outputs, inputs], element), bias }
    }

    fn trained_norm(&mut self, size: usize) -> Norm {
        let element = self.element;
        Norm { weight: self.variable(&[size], element), bias: Some(self.variable(&[size], element)) }
    }

    fn embedding(&mut self, table: &T, dims: &[usize]) -> T {
        let rows = self.rows_of(table, dims.iter().product());
        self.reshape(&rows, &[dims, &[table.dims[1]]].concat())
    }

    /// `Attention::forward`, with a layer each for query, key and value.
    fn attention(&mut self, sizes: &Sizes, x: &T, mask: Option<&T>, drops: bool) -> T {
        let mut projected = || {
            let layer = self.trained(sizes.size, sizes.size);
            let y = self.linear(x, &layer);
            self.split_heads(&y, sizes.heads)
        };
        let [query, key, value] = [projected(), projected(), projected()];
        let mixed = self.attention_of([&query, &key, &value], mask, drops);
        let output = self.trained(sizes.size, sizes.size);
        self.linear(&mixed, &output)
    }

    fn feed(&mut self, sizes: &Sizes, x: &T) -> T {
        let (wide, narrow) = (self.trained(sizes.size, sizes.inner), self.trained(sizes.inner, sizes.size));
        let x = self.linear_gelu(x, &wide);
        self.linear(&x, &narrow)
    }
}

fn bert(tape: &mut Tape, sizes: &Sizes) -> T {
    let &Sizes { batch, length, size, .. } = sizes;
    let element = tape.element;
    let words = tape.variable(&[sizes.vocabulary, size], element);
    let segments = tape.variable(&[2, size], element);
    let positions = tape.variable(&[sizes.positions, size], element);
    let words = tape.embedding(&words, &[batch, length]);
    let segments = tape.embedding(&segments, &[batch, length]);
    let x = tape.two(Two::Add, &words, &segments);
    let positions = tape.embedding(&positions, &[length]);
    let x = tape.broadcast_two(Two::Add, &x, &positions);
    let norm = tape.trained_norm(size);
    let x = tape.norm(&x, &norm);
    let mut x = tape.dropout(&x);
    let mask = tape.constant(&[batch, 1, 1, length], element);
    for _ in 0..sizes.blocks {
        x = tape.block(|tape| {
            let attended = tape.attention(sizes, &x, Some(&mask), true);
            let attended = tape.dropout(&attended);
            let norm = tape.trained_norm(size);
            let [_, x] = tape.add_norm(&attended, &x, &norm, false);
            let fed = tape.feed(sizes, &x);
            let fed = tape.dropout(&fed);
            let norm = tape.trained_norm(size);
            let [_, x] = tape.add_norm(&fed, &x, &norm, false);
            x
        });
    }
    let first = tape.narrow(&x, 1, 0, 1);
    let first = tape.squeeze(&first, 1);
    let first = tape.dropout(&first);
    let head = tape.trained(size, sizes.classes);
    tape.linear(&first, &head)
}

fn vit(tape: &mut Tape, sizes: &Sizes) -> T {
    let &Sizes { batch, length, size, .. } = sizes;
    let element = tape.element;
    let numbers = 3 * sizes.patch * sizes.patch;
    let pixels = tape.constant(&[batch, length, numbers], element);
    tape.spend(1, 2 * pixels.bytes());
    let weight = tape.variable(&[size, 3, sizes.patch, sizes.patch], element);
    let weight = tape.reshape(&weight, &[size, numbers]);
    let patch = Linear { weight, bias: Some(tape.variable(&[size], element)) };
    let patches = tape.linear(&pixels, &patch);
    let class_token = tape.variable(&[1, 1, size], element);
    let class_token = tape.reshape(&class_token, &[1, 1, size]);
    let positions = tape.variable(&[1, sizes.positions, size], element);
    let positions = tape.reshape(&positions, &[1, sizes.positions, size]);
    let first = tape.broadcast(&class_token, &[batch, 1, size]);
    let x = tape.cat(&[&first, &patches], 1);
    let mut x = tape.broadcast_two(Two::Add, &x, &positions);
    for _ in 0..sizes.blocks {
        x = tape.block(|tape| {
            let norm = tape.trained_norm(size);
            let normed = tape.norm(&x, &norm);
            let attended = tape.attention(sizes, &normed, None, false);
            let norm = tape.trained_norm(size);
            let [sum, normed] = tape.add_norm(&attended, &x, &norm, true);
            let fed = tape.feed(sizes, &normed);
            tape.add(&fed, &sum)
        });
    }
    let first = tape.narrow(&x, 1, 0, 1);
    let first = tape.squeeze(&first, 1);
    let norm = tape.trained_norm(size);
    let first = tape.norm(&first, &norm);
    let head = tape.trained(size, sizes.classes);
    tape.linear(&first, &head)
}

/// A frozen layer with its update.
fn lora(tape: &mut Tape, x: &T, inputs: usize, outputs: usize, rank: usize) -> T {
    let element = tape.element;
    let base = Linear { weight: tape.constant(&[outputs, inputs], element), bias: None };
    let output = tape.linear(x, &base);
    let x = tape.cast(x, 4);
    let a = Linear { weight: tape.variable(&[rank, inputs], 4), bias: None };
    let b = Linear { weight: tape.variable(&[outputs, rank], 4), bias: None };
    let inner = tape.linear(&x, &a);
    let inner = tape.scale(&inner);
    let update = tape.linear(&inner, &b);
    let output = tape.cast(&output, 4);
    let sum = tape.add(&output, &update);
    tape.cast(&sum, element)
}

fn llama(tape: &mut Tape, sizes: &Sizes, groups: usize, rank: usize) -> T {
    let &Sizes { batch, size, heads, inner, .. } = sizes;
    let (length, width, element) = (sizes.length - 1, size / heads, tape.element);
    let frozen_norm = |tape: &mut Tape, x: &T| {
        let weight = tape.constant(&[size], element);
        tape.norm(x, &Norm { weight, bias: None })
    };
    let words = tape.constant(&[sizes.vocabulary, size], element);
    let mut x = tape.embedding(&words, &[batch, length]);
    let [cos, sin] = [(); 2].map(|()| tape.constant(&[length, width / 2], element));
    let mask = tape.constant(&[length, length], element);
    for _ in 0..sizes.blocks {
        x = tape.block(|tape| {
            let normed = frozen_norm(tape, &x);
            let split = |tape: &mut Tape, heads: usize| {
                let y = lora(tape, &normed, size, heads * width, rank);
                tape.split_heads(&y, heads)
            };
            let (query, key, value) = (split(tape, heads), split(tape, groups), split(tape, groups));
            let query = tape.rope(&query, &cos, &sin);
            let key = tape.rope(&key, &cos, &sin);
            let mixed = tape.attention_of([&query, &key, &value], Some(&mask), false);
            let attended = lora(tape, &mixed, size, size, rank);
            let norm = Norm { weight: tape.constant(&[size], element), bias: None };
            let [sum, normed] = tape.add_norm(&attended, &x, &norm, true);
            let gate = lora(tape, &normed, size, inner, rank);
            let up = lora(tape, &normed, size, inner, rank);
            let fed = tape.gated_silu(&gate, &up);
            let fed = lora(tape, &fed, inner, size, rank);
            tape.add(&fed, &sum)
        });
    }
    let x = frozen_norm(tape, &x);
    let x = tape.reshape(&x, &[batch * length, size]);
    // The head is the table of tokens.
    tape.linear(&x, &Linear { weight: words, bias: None })
}

/// Shapes of the graph's nodes on the CPU and of what is inside its blocks, each in order.
#[cfg(test)]
pub(super) fn shapes(network: Network) -> [Vec<Vec<usize>>; 2] {
    let mut tape = Tape::new(super::tape::How::Cpu, 4);
    step(&mut tape, network);
    let mut nodes = [tape.nodes, tape.inner];
    nodes.iter_mut().for_each(|nodes| nodes.sort());
    nodes
}
