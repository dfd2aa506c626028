//! The graph network, and graphs as it takes them.

use candle_core::{Device, Module, Result, Tensor};
use candle_nn::VarBuilder;
use tpgm_candle::nn::{LayerNorm, Linear, layer_norm, linear, matmul, relu};

use super::graphs::Graph;

/// Numbers of a node.
pub(super) const WIDTH: usize = 32;
/// Rounds in which nodes hear of their neighbors.
const LAYERS: usize = 3;
/// Nodes with so many neighbors or more look alike.
const DEGREES: usize = 9;

/// Some graphs side by side.
#[derive(Debug)]
pub(super) struct Batch {
    /// Number of neighbors of each node, u32.
    degrees: Tensor,
    /// Ends of the edges, u32.
    from: Tensor,
    to: Tensor,
    /// The mean over the nodes of each graph, of shape (graphs, nodes).
    means: Tensor,
    /// Classes, u32.
    pub(super) labels: Tensor,
}

impl Batch {
    /// Of graphs in this order.
    pub(super) fn new<'a>(graphs: impl Iterator<Item = &'a Graph> + Clone) -> Result<Self> {
        let all: u32 = graphs.clone().map(|graph| graph.nodes).sum();
        let (mut from, mut to, mut means, mut labels) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let (mut degrees, mut start) = (vec![0u32; all as usize], 0);
        for graph in graphs {
            for (a, b) in &graph.edges {
                from.push(start + a);
                to.push(start + b);
                degrees[(start + b) as usize] += 1;
            }
            let own = start..start + graph.nodes;
            let share = |node| if own.contains(&node) { 1.0 / graph.nodes as f32 } else { 0.0 };
            means.extend((0..all).map(share));
            labels.push(graph.class);
            start += graph.nodes;
        }
        degrees.iter_mut().for_each(|degree| *degree = (*degree).min(DEGREES as u32 - 1));
        let numbers = |numbers: Vec<u32>| {
            let count = numbers.len();
            Tensor::from_vec(numbers, count, &Device::Cpu)
        };
        Ok(Self {
            degrees: numbers(degrees)?,
            from: numbers(from)?,
            to: numbers(to)?,
            means: Tensor::from_vec(means, (labels.len(), all as usize), &Device::Cpu)?,
            labels: numbers(labels)?,
        })
    }
}

/// A graph isomorphism network (Xu et al., arXiv 1810.00826): in each layer `h <- norm(relu(B relu(A (h + sum over neighbors))))`.
/// A node begins as a row of a table, by its number of neighbors; a graph is the mean over its nodes.
pub(super) struct Gin {
    table: Tensor,
    layers: Vec<(Linear, Linear, LayerNorm)>,
}

impl Gin {
    /// Asks `vb` for every tensor.
    pub(super) fn new(vb: &VarBuilder) -> Result<Self> {
        let layer = |number: usize| {
            let vb = vb.pp(format!("layers.{number}"));
            let dense = |name: &str| linear(WIDTH, WIDTH, vb.pp(name));
            Ok((dense("a")?, dense("b")?, layer_norm(WIDTH, 1e-5, vb.pp("norm"))?))
        };
        let table = vb.get_with_hints((DEGREES, WIDTH), "table", candle_nn::init::DEFAULT_KAIMING_UNIFORM)?;
        Ok(Self { table, layers: (0..LAYERS).map(layer).collect::<Result<_>>()? })
    }

    /// What nodes begin as, of shape (nodes, width): what prompts are added to.
    pub(super) fn embed(&self, batch: &Batch) -> Result<Tensor> {
        self.table.index_select(&batch.degrees, 0)
    }

    /// Graphs, of shape (graphs, width), from their embedded nodes.
    pub(super) fn forward(&self, nodes: &Tensor, batch: &Batch) -> Result<Tensor> {
        let mut h = nodes.clone();
        for (a, b, norm) in &self.layers {
            let sums = h.index_add(&batch.to, &h.index_select(&batch.from, 0)?, 0)?;
            h = norm.forward(&relu(&b.forward(&relu(&a.forward(&sums)?)?)?)?)?;
        }
        matmul(&batch.means, &h)
    }
}
