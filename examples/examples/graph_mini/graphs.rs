//! Graphs: a motif, which is the class, hangs on a base by one edge.
//!
//! After Spurious-Motif (Wu et al., "Discovering Invariant Rationales for Graph Neural Networks", arXiv 2201.12872), with bases,
//! motifs and sizes of our own.

use tpgm_examples::mini::data::Dice;

/// A part that says nothing about the class, unless a set is drawn so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Base {
    /// Every node hangs on an earlier one.
    Tree,
    /// Two paths with rungs.
    Ladder,
    /// A ring around a hub.
    Wheel,
    /// A ring.
    Ring,
    /// Four columns.
    Grid,
}

impl Base {
    /// Those of fine-tuning.
    pub(super) const KNOWN: [Base; 4] = [Base::Tree, Base::Ladder, Base::Wheel, Base::Ring];
    /// All.
    pub(super) const ALL: [Base; 5] = [Base::Tree, Base::Ladder, Base::Wheel, Base::Ring, Base::Grid];

    /// Edges among about so many nodes, and how many there are.
    fn draw(self, nodes: u32, dice: &mut Dice) -> (Vec<(u32, u32)>, u32) {
        let ring = |from: u32, to: u32| (from..to).map(move |i| (i, if i + 1 < to { i + 1 } else { from }));
        match self {
            Base::Tree => ((1..nodes).map(|i| (dice.below(i as usize) as u32, i)).collect(), nodes),
            Base::Ladder => {
                let half = nodes / 2;
                let sides = (1..half).flat_map(|i| [(i - 1, i), (half + i - 1, half + i)]);
                (sides.chain((0..half).map(|i| (i, half + i))).collect(), 2 * half)
            }
            Base::Wheel => (ring(1, nodes).chain((1..nodes).map(|i| (0, i))).collect(), nodes),
            Base::Ring => (ring(0, nodes).collect(), nodes),
            Base::Grid => {
                let rows = nodes / 4;
                let along = (0..rows).flat_map(|row| (1..4).map(move |i| (4 * row + i - 1, 4 * row + i)));
                let down = (4..4 * rows).map(|i| (i - 4, i));
                (along.chain(down).collect(), 4 * rows)
            }
        }
    }
}

/// The edges of a class's motif.
pub(super) type Motif = &'static [(u32, u32)];

/// The motifs of pre-training: four nodes that all touch, a star, three nodes between two, two triangles with a common node, two
/// triangles side by side, and a triangle with two horns.
pub(super) const PRETRAINED: [Motif; 6] = [
    &[(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)],
    &[(0, 1), (0, 2), (0, 3), (0, 4), (0, 5)],
    &[(0, 2), (0, 3), (0, 4), (1, 2), (1, 3), (1, 4)],
    &[(0, 1), (0, 2), (1, 2), (0, 3), (0, 4), (3, 4)],
    &[(0, 1), (1, 2), (2, 0), (3, 4), (4, 5), (5, 3), (0, 3), (1, 4), (2, 5)],
    &[(0, 1), (1, 2), (2, 0), (0, 3), (1, 4)],
];

/// The motifs of fine-tuning: a house, a square with one diagonal, a fan of three triangles, and a triangle with a tail.
pub(super) const CLASSES: [Motif; 4] = [
    &[(0, 1), (1, 2), (2, 3), (3, 0), (0, 4), (1, 4)],
    &[(0, 1), (1, 2), (2, 3), (3, 0), (0, 2)],
    &[(0, 1), (0, 2), (0, 3), (0, 4), (1, 2), (2, 3), (3, 4)],
    &[(0, 1), (1, 2), (2, 0), (0, 3), (3, 4)],
];

/// Which base a class has.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Bases {
    /// Class `i` has the `i`-th of [`Base::KNOWN`] this often, else one of the others.
    Usual(f32),
    /// Any of [`Base::KNOWN`], whatever the class.
    Known,
    /// Any of [`Base::ALL`].
    All,
    /// One.
    One(Base),
}

/// What is drawn.
#[derive(Debug, Clone, Copy)]
pub(super) struct Request {
    /// Classes.
    pub(super) motifs: &'static [Motif],
    pub(super) bases: Bases,
    /// Smallest and largest number of nodes of a base; at least 8.
    pub(super) nodes: (u32, u32),
    /// Edges between any two nodes besides.
    pub(super) noise: usize,
}

/// A graph: nodes, edges in both directions, and its class.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Graph {
    pub(super) nodes: u32,
    pub(super) edges: Vec<(u32, u32)>,
    pub(super) class: u32,
}

impl Request {
    /// The graph of a class with some number. The same key gives the same graph.
    pub(super) fn draw(&self, class: usize, key: [u64; 3]) -> Graph {
        let mut dice = Dice::new([key[0], key[1], key[2], class as u64]);
        let (low, high) = self.nodes;
        let nodes = low + dice.below((high - low + 1) as usize) as u32;
        let known = Base::KNOWN;
        let base = match self.bases {
            Bases::Usual(share) if dice.chance(share) => known[class],
            Bases::Usual(_) => known[(class + 1 + dice.below(known.len() - 1)) % known.len()],
            Bases::Known => known[dice.below(known.len())],
            Bases::All => Base::ALL[dice.below(Base::ALL.len())],
            Bases::One(base) => base,
        };
        let (mut edges, first) = base.draw(nodes, &mut dice);
        let motif = self.motifs[class];
        let more = motif.iter().flat_map(|(a, b)| [a, b]).max().map_or(0, |last| last + 1);
        edges.extend(motif.iter().map(|(a, b)| (first + a, first + b)));
        edges.push((dice.below(first as usize) as u32, first + dice.below(more as usize) as u32));
        let nodes = first + more;
        for _ in 0..self.noise {
            let (a, b) = (dice.below(nodes as usize) as u32, dice.below(nodes as usize) as u32);
            if a != b && !edges.contains(&(a, b)) && !edges.contains(&(b, a)) {
                edges.push((a, b));
            }
        }
        let both = edges.iter().flat_map(|(a, b)| [(*a, *b), (*b, *a)]).collect();
        Graph { nodes, edges: both, class: class as u32 }
    }

    /// `count` graphs of every class, in random order. Sets with another number have other graphs.
    pub(super) fn set(&self, count: usize, seed: u64, number: u64) -> Vec<Graph> {
        let mut graphs: Vec<_> = (0..count as u64)
            .flat_map(|i| (0..self.motifs.len()).map(move |class| (class, i)))
            .map(|(class, i)| self.draw(class, [seed, number, i]))
            .collect();
        Dice::new([seed, number, u64::MAX, 0]).shuffle(&mut graphs);
        graphs
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REQUEST: Request = Request { motifs: &CLASSES, bases: Bases::All, nodes: (8, 16), noise: 0 };

    /// Every node is reached from the first, no edge is there twice or from a node to itself.
    fn check(graph: &Graph) {
        let mut seen = vec![false; graph.nodes as usize];
        let mut waiting = vec![0];
        while let Some(node) = waiting.pop() {
            if !std::mem::replace(&mut seen[node as usize], true) {
                waiting.extend(graph.edges.iter().filter(|(from, _)| *from == node).map(|(_, to)| *to));
            }
        }
        assert!(seen.iter().all(|seen| *seen), "{graph:?}");
        let mut edges = graph.edges.clone();
        edges.sort_unstable();
        edges.dedup();
        assert_eq!(edges.len(), graph.edges.len(), "{graph:?}");
        assert!(edges.iter().all(|(a, b)| a != b && edges.contains(&(*b, *a))));
    }

    #[test]
    fn graphs_are_whole_and_simple() {
        for noise in [0, 5] {
            Request { noise, ..REQUEST }.set(30, 1, 2).iter().for_each(check);
            let motifs = &PRETRAINED;
            Request { noise, motifs, ..REQUEST }.set(20, 1, 2).iter().for_each(check);
        }
        // Counted by hand: edges of a base of eight nodes, of a house, and one between.
        for (base, edges) in
            [(Base::Tree, 7), (Base::Ladder, 10), (Base::Wheel, 14), (Base::Ring, 8), (Base::Grid, 10)]
        {
            let graph = Request { bases: Bases::One(base), nodes: (8, 8), ..REQUEST }.draw(0, [0; 3]);
            assert_eq!((graph.nodes, graph.edges.len()), (8 + 5, 2 * (edges + 6 + 1)), "{base:?}");
        }
    }

    #[test]
    fn a_class_has_its_usual_base_as_often_as_is_asked_for() {
        // A ring of eight has as many edges as nodes; no other known base has.
        let rings = |bases, class: usize| {
            let request = Request { bases, nodes: (8, 8), ..REQUEST };
            let own = 2 * (CLASSES[class].len() + 1);
            let graphs = (0..400).map(|i| request.draw(class, [3, 0, i]));
            graphs.filter(|graph| graph.edges.len() - own == 16).count()
        };
        let near = |count: usize, share: f64| (count as f64 / 400.0 - share).abs() < 0.08;
        assert!(near(rings(Bases::Usual(0.9), 3), 0.9) && near(rings(Bases::Usual(0.9), 0), 0.1 / 3.0));
        assert!(near(rings(Bases::Known, 3), 0.25) && near(rings(Bases::Known, 0), 0.25));
        assert_eq!(rings(Bases::One(Base::Grid), 0), 0);
    }
}
