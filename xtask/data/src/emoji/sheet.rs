//! One picture of the set: concepts below each other, styles beside each other.

use std::collections::BTreeMap;

use image::{Rgb, RgbImage, imageops};

use super::catalog::Emoji;
use super::style::Style;
use crate::digest::draw;

/// Concepts on the sheet.
const ROWS: usize = 24;
/// Pixels between two pictures.
const GAP: u32 = 4;

/// Some concepts, drawn by lot, in all styles in the order of [`Style::ALL`]; gray where there is no picture.
pub(crate) fn sheet(concepts: &[Emoji], pixels: &BTreeMap<(Style, String), RgbImage>, side: u32) -> RgbImage {
    let mut rows = draw(concepts.iter().collect(), |emoji: &&Emoji| format!("sheet/{}", emoji.code));
    rows.truncate(ROWS);
    let cell = side + GAP;
    let mut sheet =
        RgbImage::from_pixel(Style::ALL.len() as u32 * cell, rows.len() as u32 * cell, Rgb([255; 3]));
    let missing = RgbImage::from_pixel(side, side, Rgb([224; 3]));
    for (row, emoji) in (0..).zip(&rows) {
        for (column, style) in (0..).zip(Style::ALL) {
            let picture = pixels.get(&(style, emoji.code.clone())).unwrap_or(&missing);
            imageops::replace(&mut sheet, picture, i64::from(column * cell), i64::from(row * cell));
        }
    }
    sheet
}

#[cfg(test)]
mod tests {
    use super::super::catalog::tests::emoji;
    use super::*;

    #[test]
    fn rows_are_concepts_and_columns_are_styles() {
        let red = RgbImage::from_pixel(2, 2, Rgb([255, 0, 0]));
        let pixels = [((Style::NotoV1, "1".to_owned()), red)].into();
        let sheet = sheet(&[emoji("1", "a")], &pixels, 2);
        assert_eq!(sheet.dimensions(), (66, 6));
        assert_eq!([0, 6, 8].map(|x| sheet.get_pixel(x, 1).0), [[224; 3], [255, 0, 0], [255; 3]]);
    }
}
