//! Which rank keeps the state of which tensor.

use std::collections::HashSet;
use std::ops::Range;

use tpgm_core::ParamSet;

/// Elements of a rank that are sent at a time, where a single tensor has not more: 4 MiB of f32. So many of every rank, because all
/// ranks work at the same time then, and links carry messages in both directions.
const BUCKET: usize = 1 << 20;

/// A set of tensors divided between ranks, and cut into buckets that are sent one after the other: one where there is nobody to send
/// to. Follows from the shapes alone, so that all ranks have the same one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Division {
    owners: Vec<usize>,
    buckets: Vec<Range<usize>>,
}

impl Division {
    /// Gives every tensor to the rank with the fewest elements so far, the largest tensor first: no two ranks differ by more
    /// than the elements of one tensor. `memory` says which tensors lie in one variable's: of these a bucket
    /// has one of each rank.
    pub(crate) fn new(set: &ParamSet, memory: &[usize], ranks: usize) -> Self {
        let numel: Vec<usize> = set.tensors().iter().map(|spec| spec.numel()).collect();
        let mut order: Vec<usize> = (0..numel.len()).collect();
        order.sort_by_key(|&i| (std::cmp::Reverse(numel[i]), i));
        let (mut owners, mut loads) = (vec![0; numel.len()], vec![0usize; ranks.max(1)]);
        for i in order {
            let rank = (0..loads.len()).min_by_key(|&rank| (loads[rank], rank)).expect("there is a rank");
            owners[i] = rank;
            loads[rank] += numel[i];
        }
        let mut buckets: Vec<Range<usize>> = Vec::new();
        let (mut elements, mut here) = (vec![0; ranks.max(1)], HashSet::new());
        for (i, numel) in numel.into_iter().enumerate() {
            let rank = owners[i];
            let fits = ranks <= 1 || elements[rank] == 0 || elements[rank] + numel <= BUCKET;
            match buckets.last_mut() {
                Some(bucket) if fits && !here.contains(&(rank, memory[i])) => bucket.end = i + 1,
                _ => {
                    buckets.push(i..i + 1);
                    elements.fill(0);
                    here.clear();
                }
            }
            elements[rank] += numel;
            here.insert((rank, memory[i]));
        }
        Self { owners, buckets }
    }

    /// The rank of each tensor, in set order.
    pub(crate) fn owners(&self) -> &[usize] {
        &self.owners
    }

    /// Positions that follow each other, in set order.
    pub(crate) fn buckets(&self) -> &[Range<usize>] {
        &self.buckets
    }

    /// The tensors of a rank in a bucket.
    pub(crate) fn of(&self, rank: usize, bucket: &Range<usize>) -> Vec<usize> {
        bucket.clone().filter(|&i| self.owners[i] == rank).collect()
    }
}

#[cfg(test)]
mod tests {
    use tpgm_core::DType;

    use super::*;

    fn set(numel: &[usize]) -> ParamSet {
        let tensors = numel.iter().enumerate();
        tensors
            .fold(ParamSet::builder(), |set, (i, &n)| set.tensor(format!("{i}"), [n], DType::F32))
            .build()
            .unwrap()
    }

    /// Of tensors with memory of their own.
    fn divide(numel: &[usize], ranks: usize) -> Division {
        Division::new(&set(numel), &(0..numel.len()).collect::<Vec<_>>(), ranks)
    }

    #[test]
    fn tensors_go_to_the_rank_with_the_least() {
        // By hand: 7 to rank 0, 5 to 1, 4 to 1 (5 < 7), 3 to 0, 3 to 1 (9 < 10), 0 to 0 (10 < 12).
        let division = divide(&[3, 7, 0, 5, 4, 3], 2);
        assert_eq!(division.owners(), [0, 0, 0, 1, 1, 1]);
        assert_eq!(divide(&[3, 7], 1).owners(), [0, 0]);
        // More ranks than tensors: some keep nothing.
        assert_eq!(divide(&[3, 7], 4).owners(), [1, 0]);
    }

    #[test]
    fn ranks_are_even_within_the_largest_tensor() {
        let mut x = 7u64;
        for tensors in 1..60 {
            let mut next = || {
                x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (x >> 33) as usize % 100_000
            };
            let numel: Vec<usize> = (0..tensors).map(|_| next()).collect();
            for ranks in 1..6 {
                let division = divide(&numel, ranks);
                let load = |rank| -> usize {
                    (0..tensors).filter(|&i| division.owners()[i] == rank).map(|i| numel[i]).sum()
                };
                let loads: Vec<usize> = (0..ranks).map(load).collect();
                let (least, most) = (loads.iter().min().unwrap(), loads.iter().max().unwrap());
                assert!(most - least <= *numel.iter().max().unwrap(), "{numel:?}: {loads:?}");
            }
        }
    }

    #[test]
    fn every_tensor_is_in_one_bucket() {
        let division = divide(&[BUCKET - 1, 1, 1, 3 * BUCKET, 0, 5, BUCKET], 3);
        // By hand: of ranks 2, 1, 1, 0 and 1; rank 2 has too much for the next then, and rank 1 has the last.
        assert_eq!(division.buckets(), [0..5, 5..7]);
        assert!(divide(&[], 3).buckets().is_empty());
        assert_eq!(divide(&[BUCKET, 1, 3 * BUCKET], 1).buckets(), std::slice::from_ref(&(0..3)));
        let own: Vec<usize> = (0..3).flat_map(|rank| division.of(rank, &(0..7))).collect();
        assert_eq!(own.len(), 7);
        // Of ranks 0, 1, 1, 0 and 0: two blocks of rank 1 lie in one variable.
        let division = Division::new(&set(&[5, 4, 4, 3, 2]), &[0, 1, 1, 1, 2], 2);
        assert_eq!(division.buckets(), [0..2, 2..5]);
    }
}
