//! Emoji of pre-training that look like those of a task: "green apple" is nearly "red apple".

use std::collections::BTreeMap;

use image::RgbImage;
use rayon::prelude::*;

use super::catalog::Emoji;
use super::style::Style;

/// Width and height of the pictures that are compared.
pub(crate) const SIDE: u32 = 64;
/// Two pictures are near at this correlation of their gray values, mirrored or not.
const NEAR: f32 = 0.85;
/// In so many styles.
const STYLES: usize = 3;
/// Or the median over the styles that both have is above this.
const MEDIAN: f32 = 0.8;

/// Gray values minus their mean, of length 1; all zero where a picture has one color.
fn gray(image: &RgbImage) -> Vec<f32> {
    let gray = image.pixels().map(|pixel| {
        let [red, green, blue] = pixel.0.map(f32::from);
        0.299 * red + 0.587 * green + 0.114 * blue
    });
    let mut values: Vec<f32> = gray.collect();
    let mean = values.iter().sum::<f32>() / values.len() as f32;
    values.iter_mut().for_each(|value| *value -= mean);
    let length = values.iter().map(|value| value * value).sum::<f32>().sqrt();
    if length > 0.0 {
        values.iter_mut().for_each(|value| *value /= length);
    }
    values
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    // Eight sums, so that they need not wait for each other.
    let mut sums = [0.0f32; 8];
    for (a, b) in a.chunks_exact(8).zip(b.chunks_exact(8)) {
        for (sum, (a, b)) in sums.iter_mut().zip(a.iter().zip(b)) {
            *sum += a * b;
        }
    }
    let rest = a.chunks_exact(8).remainder().iter().zip(b.chunks_exact(8).remainder());
    sums.iter().sum::<f32>() + rest.map(|(a, b)| a * b).sum::<f32>()
}

/// Whether two emoji look alike, by the correlations of their pictures in each style that both have.
fn alike(mut correlations: Vec<f32>) -> bool {
    if correlations.is_empty() {
        return false;
    }
    correlations.sort_by(f32::total_cmp);
    let median = correlations[correlations.len() / 2];
    median > MEDIAN || correlations.iter().filter(|value| **value > NEAR).count() >= STYLES
}

/// Divides `other` into those that look like none of `task`, and those that do.
pub(crate) fn without_near(
    other: &[Emoji],
    task: &[Emoji],
    pictures: &BTreeMap<(Style, String), RgbImage>,
) -> (Vec<Emoji>, Vec<Emoji>) {
    let grays = |emoji: &Emoji| -> Vec<(Style, Vec<f32>)> {
        let of = |style: Style| Some((style, gray(pictures.get(&(style, emoji.code.clone()))?)));
        Style::ALL.into_iter().filter_map(of).collect()
    };
    let task: Vec<_> = task.par_iter().map(grays).collect();
    let is_near = |emoji: &Emoji| {
        let own = grays(emoji);
        let mirrored = |style: Style| {
            let image = pictures.get(&(style, emoji.code.clone()))?;
            Some(gray(&image::imageops::flip_horizontal(image)))
        };
        let mirrored: Vec<_> = own.iter().map(|(style, _)| mirrored(*style).unwrap_or_default()).collect();
        task.iter().any(|theirs| {
            let both = own.iter().zip(&mirrored).filter_map(|((style, plain), mirrored)| {
                let (_, other) = theirs.iter().find(|(of, _)| of == style)?;
                Some(dot(plain, other).max(dot(mirrored, other)))
            });
            alike(both.collect())
        })
    };
    let near: Vec<bool> = other.par_iter().map(is_near).collect();
    let (near, far): (Vec<_>, Vec<_>) = other.iter().cloned().zip(near).partition(|(_, near)| *near);
    (far.into_iter().map(|(emoji, _)| emoji).collect(), near.into_iter().map(|(emoji, _)| emoji).collect())
}

#[cfg(test)]
mod tests {
    use super::super::catalog::tests::emoji;
    use super::*;

    #[test]
    fn what_looks_alike_in_three_styles_or_in_most_of_them_is_near() {
        assert!(alike(vec![0.9, 0.1, 0.9, 0.1, 0.1, 0.9, 0.1]));
        assert!(!alike(vec![0.9, 0.1, 0.9, 0.1, 0.1, 0.8, 0.1]));
        assert!(alike(vec![0.1, 0.82, 0.82]));
        assert!(!alike(vec![]));
    }

    #[test]
    fn a_mirrored_and_dimmed_copy_is_found() {
        let ramp = |turned: bool, dim: u32| {
            RgbImage::from_fn(9, 9, |x, y| {
                let x = if turned { 8 - x } else { x };
                image::Rgb([((12 * x + 2 * x * y) / dim) as u8; 3])
            })
        };
        let squares = RgbImage::from_fn(9, 9, |x, y| image::Rgb([((x / 2 + y / 2) % 2 * 255) as u8; 3]));
        let (copy, other, task) = (emoji("1", "a"), emoji("2", "a"), emoji("3", "a"));
        let mut pictures = BTreeMap::new();
        for style in [Style::Noto, Style::Twemoji] {
            pictures.insert((style, "1".to_owned()), ramp(true, 2));
            pictures.insert((style, "2".to_owned()), squares.clone());
            pictures.insert((style, "3".to_owned()), ramp(false, 1));
        }
        let (far, near) = without_near(&[copy.clone(), other.clone()], &[task], &pictures);
        assert_eq!((far, near), (vec![other], vec![copy]));
        assert_eq!(gray(&RgbImage::new(3, 3)), [0.0; 9]);
    }
}
