//! Which samples were classified rightly, a bit for each.

use std::fmt::Write as _;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

/// A bit for each sample of a set, in its order. In files: their number, a colon, and four of them per hexadecimal digit.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Marks(Vec<bool>);

impl Marks {
    /// One for each sample.
    pub fn new(right: Vec<bool>) -> Self {
        Self(right)
    }

    /// One for each sample.
    pub fn as_slice(&self) -> &[bool] {
        &self.0
    }

    /// Share of samples that were classified rightly, in `[0, 1]`; NaN of none.
    pub fn share(&self) -> f64 {
        self.0.iter().filter(|right| **right).count() as f64 / self.0.len() as f64
    }

    fn parse(text: &str) -> Option<Self> {
        let (count, digits) = text.split_once(':')?;
        let count: usize = count.parse().ok()?;
        if digits.len() != count.div_ceil(4) {
            return None;
        }
        let mut right = Vec::with_capacity(count);
        for digit in digits.chars() {
            let four = digit.to_digit(16)?;
            right.extend((0..4).map(|bit| four >> bit & 1 == 1));
        }
        right.truncate(count);
        Some(Self(right))
    }
}

impl Serialize for Marks {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut text = format!("{}:", self.0.len());
        for four in self.0.chunks(4) {
            let digit = four.iter().rev().fold(0, |digit, right| digit << 1 | u8::from(*right));
            let _ = write!(text, "{digit:x}");
        }
        serializer.serialize_str(&text)
    }
}

impl<'de> Deserialize<'de> for Marks {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).ok_or_else(|| D::Error::custom(format!("`{text}` are no marks of samples")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_come_back_from_four_bits_a_digit() {
        let marks = Marks::new(vec![true, false, false, false, false, true]);
        let text = serde_json::to_string(&marks).unwrap();
        assert_eq!(text, "\"6:12\"");
        assert_eq!(serde_json::from_str::<Marks>(&text).unwrap(), marks);
        assert_eq!(serde_json::from_str::<Marks>("\"0:\"").unwrap(), Marks::default());
        for damaged in ["\"6:123\"", "\"6:1g\"", "\"12\"", "\"-1:\""] {
            let error = serde_json::from_str::<Marks>(damaged).unwrap_err().to_string();
            assert!(error.contains("are no marks of samples"), "{error}");
        }
    }
}
