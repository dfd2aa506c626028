//! How fast memory is: the floors every other number is compared with.
//!
//! An optimizer updates in place: a cache line is read, changed and written back. [`Floor::InPlace`] does just that and
//! is the fair floor. [`Floor::Copy`] and [`Floor::Triad`] write to lines they have not read; with ordinary stores the
//! processor first reads such a line, which the counted bytes leave out, so an in-place step can run at more than
//! 100 % of the copy bandwidth.

use rayon::prelude::*;

/// One of the measured floors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Floor {
    /// `a = b`.
    Copy,
    /// `a = b + s * c`.
    Triad,
    /// `a = a + s * b`.
    InPlace,
}

impl Floor {
    /// All floors.
    pub const ALL: [Floor; 3] = [Floor::Copy, Floor::Triad, Floor::InPlace];

    /// Name in tables.
    pub const fn name(self) -> &'static str {
        match self {
            Floor::Copy => "copy",
            Floor::Triad => "triad",
            Floor::InPlace => "triad in place",
        }
    }

    /// Bytes read and written per f32 element.
    pub const fn bytes_per_element(self) -> usize {
        match self {
            Floor::Copy => 8,
            Floor::Triad | Floor::InPlace => 12,
        }
    }
}

/// Three arrays far larger than any cache.
#[derive(Debug)]
pub struct Floors {
    a: Vec<f32>,
    b: Vec<f32>,
    c: Vec<f32>,
    chunk: usize,
}

/// Scale of the triads: small, so that the array updated in place stays finite over any number of rounds.
const SCALE: f32 = 1e-3;
/// Bytes of a cache line, or of half of one.
const LINE: usize = 64;

impl Floors {
    /// Arrays of `len` elements, cut into four chunks per thread, which evens out threads of different speed.
    pub fn new(len: usize, threads: usize) -> Self {
        Self {
            a: vec![0.5; len],
            b: vec![0.25; len],
            c: vec![2.0; len],
            chunk: len.div_ceil(4 * threads.max(1)).max(1),
        }
    }

    /// Number of elements of each array.
    pub fn len(&self) -> usize {
        self.a.len()
    }

    /// True without elements.
    pub fn is_empty(&self) -> bool {
        self.a.is_empty()
    }

    /// Reads an array, on rayon's current pool, which drives everything else out of the caches. What is left there needs no
    /// writing back, which would take its time from whoever is measured next.
    pub fn read(&self) {
        // One element of every cache line brings in the line.
        let sum = |b: &[f32]| b.iter().step_by(LINE / size_of::<f32>()).sum::<f32>();
        std::hint::black_box(self.b.par_chunks(self.chunk).map(sum).sum::<f32>());
    }

    /// Runs one floor on rayon's current pool.
    pub fn run(&mut self, floor: Floor) {
        let b = self.b.par_chunks(self.chunk);
        let c = self.c.par_chunks(self.chunk);
        let a = self.a.par_chunks_mut(self.chunk).zip(b);
        match floor {
            Floor::Copy => a.for_each(|(a, b)| a.copy_from_slice(b)),
            Floor::Triad => a.zip(c).for_each(|((a, b), c)| {
                for ((a, b), c) in a.iter_mut().zip(b).zip(c) {
                    *a = b + SCALE * c;
                }
            }),
            Floor::InPlace => a.for_each(|(a, b)| {
                for (a, b) in a.iter_mut().zip(b) {
                    *a += SCALE * b;
                }
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_floor_touches_every_element() {
        let mut floors = Floors::new(1003, 2);
        floors.run(Floor::Copy);
        assert!(floors.a.iter().all(|&a| a == 0.25));
        floors.run(Floor::InPlace);
        assert!(floors.a.iter().all(|&a| a == 0.25 + 1e-3 * 0.25));
        floors.run(Floor::Triad);
        assert!(floors.a.iter().all(|&a| a == 0.25 + 1e-3 * 2.0));
    }
}
