//! Texts that nobody wrote.

use candle_core::{Device, Result, Tensor};

use super::distributions::option;
use crate::random::SplitMix64;

/// What random texts are made of. The default is Lipsum-FT's, for CLIP's vocabulary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RandomTexts {
    /// Texts per call.
    pub count: usize,
    /// Tokens between the first and the last.
    pub length: usize,
    /// Tokens are uniform below this id.
    pub vocabulary: u32,
    /// The first token.
    pub start: u32,
    /// The last token.
    pub end: u32,
}

impl Default for RandomTexts {
    fn default() -> Self {
        Self { count: 80, length: 8, vocabulary: 49406, start: 49406, end: 49407 }
    }
}

impl RandomTexts {
    /// Token ids of new random texts, u32 of shape (count, length + 2), without padding. For
    /// [`energy_gap`](super::energy_gap), whose texts are new in every step (Lipsum-FT, arXiv 2404.00860).
    ///
    /// # Errors
    ///
    /// No texts, or an empty vocabulary.
    pub fn draw(&self, random: &mut SplitMix64, device: &Device) -> Result<Tensor> {
        const OP: &str = "random texts";
        let Self { count, length, vocabulary, start, end } = *self;
        for (name, value) in [("count", count as f64), ("vocabulary", f64::from(vocabulary))] {
            if value == 0.0 {
                return Err(option(OP, name, value, "at least 1"));
            }
        }
        let mut ids = Vec::with_capacity(count * (length + 2));
        for _ in 0..count {
            ids.push(start);
            ids.extend((0..length).map(|_| random.below(u64::from(vocabulary)) as u32));
            ids.push(end);
        }
        Tensor::from_vec(ids, (count, length + 2), device)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_of_the_vocabulary_and_have_both_ends() {
        let mut random = SplitMix64::new(1);
        let texts = RandomTexts { vocabulary: 5, start: 8, end: 9, count: 300, ..RandomTexts::default() };
        let rows = texts.draw(&mut random, &Device::Cpu).unwrap().to_vec2::<u32>().unwrap();
        let mut seen = [0; 5];
        for row in &rows {
            assert_eq!((row.len(), row[0], row[9]), (10, 8, 9));
            row[1..9].iter().for_each(|id| seen[*id as usize] += 1);
        }
        // 480 of each are expected.
        assert!(seen.iter().all(|count| (380..580).contains(count)), "{seen:?}");
        let usual = RandomTexts::default().draw(&mut random, &Device::Cpu).unwrap().to_vec2::<u32>().unwrap();
        assert_eq!((usual.len(), usual[0].len()), (80, 10));
        assert!(
            usual
                .iter()
                .all(|row| row[0] == 49406 && row[9] == 49407 && row[1..9].iter().all(|id| *id < 49406))
        );
        assert!(RandomTexts { count: 0, ..texts }.draw(&mut random, &Device::Cpu).is_err());
        assert!(RandomTexts { vocabulary: 0, ..texts }.draw(&mut random, &Device::Cpu).is_err());
    }
}
