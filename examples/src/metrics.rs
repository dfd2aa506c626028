//! How well classes were told apart.

use std::collections::BTreeMap;

use candle_core::{D, Tensor};

use crate::study::Marks;

/// The share of samples that have their largest score for their class, in `[0, 1]`; NaN of no samples. `scores` is of shape
/// (samples, classes).
///
/// # Errors
///
/// Scores of another shape.
pub fn share_of_right(scores: &Tensor, labels: &[u32]) -> candle_core::Result<f64> {
    let best = scores.argmax(D::Minus1)?.to_vec1::<u32>()?;
    let right = best.iter().zip(labels).filter(|(best, label)| best == label).count();
    Ok(right as f64 / labels.len() as f64)
}

/// Counts of (class, prediction) pairs.
#[derive(Debug, Clone)]
pub struct Confusion {
    classes: usize,
    /// Samples by position: whether they were classified rightly.
    right: BTreeMap<usize, bool>,
    /// Row: the class; column: what was predicted.
    counts: Vec<u64>,
}

impl Confusion {
    /// Nothing counted yet, of this many classes.
    pub fn new(classes: usize) -> Self {
        Self { classes, right: BTreeMap::new(), counts: vec![0; classes * classes] }
    }

    /// Counts one sample.
    ///
    /// # Panics
    ///
    /// A class beyond the number of classes.
    pub fn add(&mut self, class: usize, predicted: usize) {
        assert!(class < self.classes && predicted < self.classes, "class {class}, predicted {predicted}");
        self.counts[class * self.classes + predicted] += 1;
    }

    /// Counts the sample at a position of its set.
    ///
    /// # Panics
    ///
    /// As [`Confusion::add`].
    pub fn add_at(&mut self, position: usize, class: usize, predicted: usize) {
        self.add(class, predicted);
        self.right.insert(position, class == predicted);
    }

    /// Which of the samples that were counted with their positions were classified rightly, by position.
    pub fn marks(&self) -> Marks {
        Marks::new(self.right.values().copied().collect())
    }

    /// Samples counted.
    pub fn total(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Share of samples whose class was predicted, in `[0, 1]`; NaN of no samples.
    pub fn accuracy(&self) -> f64 {
        let right: u64 = (0..self.classes).map(|class| self.at(class, class)).sum();
        right as f64 / self.total() as f64
    }

    /// Mean of the F1 scores of the classes that occur or were predicted, in `[0, 1]`; NaN of no samples. As scikit-learn's
    /// `f1_score(average="macro", zero_division=0)`.
    pub fn macro_f1(&self) -> f64 {
        let (mut sum, mut classes) = (0.0, 0.0);
        for class in 0..self.classes {
            let of_class: u64 = (0..self.classes).map(|other| self.at(class, other)).sum();
            let predicted: u64 = (0..self.classes).map(|other| self.at(other, class)).sum();
            if of_class + predicted > 0 {
                sum += 2.0 * self.at(class, class) as f64 / (of_class + predicted) as f64;
                classes += 1.0;
            }
        }
        sum / classes
    }

    fn at(&self, class: usize, predicted: usize) -> u64 {
        self.counts[class * self.classes + predicted]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_in_the_order_of_positions() {
        let mut confusion = Confusion::new(2);
        [(5, 0, 0), (1, 1, 0), (3, 1, 1)]
            .into_iter()
            .for_each(|(at, class, best)| confusion.add_at(at, class, best));
        assert_eq!(confusion.marks(), Marks::new(vec![false, true, true]));
        assert_eq!(confusion.total(), 3);
    }

    #[test]
    fn scores_are_those_of_a_hand_computed_example() {
        let mut confusion = Confusion::new(4);
        // Classes 0, 0, 0, 1, 2 predicted as 0, 0, 1, 1, 0; class 3 never occurs.
        for (class, predicted) in [(0, 0), (0, 0), (0, 1), (1, 1), (2, 0)] {
            confusion.add(class, predicted);
        }
        assert_eq!(confusion.accuracy(), 3.0 / 5.0);
        // F1: 2*2/(3+3), 2*1/(1+2), 0.
        assert!((confusion.macro_f1() - (4.0 / 6.0 + 2.0 / 3.0) / 3.0).abs() < 1e-15);
        assert!(Confusion::new(2).accuracy().is_nan() && Confusion::new(2).macro_f1().is_nan());
    }
}
