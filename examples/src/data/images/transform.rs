//! From a file to the numbers that a model takes.

use std::fmt;
use std::path::Path;

use anyhow::{Context, Result};
use clap::ValueEnum;
use image::RgbImage;
use image::imageops::{self, FilterType};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use serde::{Deserialize, Serialize};

use super::decode;

/// What is done to a training image at random.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Augmentation {
    /// A window of at least this share of the image's area is cut out, of an aspect between 3:4 and 4:3, in `(0, 1]`.
    pub smallest_area: f64,
    /// Whether half of the images are mirrored.
    pub mirror: bool,
}

/// How an image is scaled. Where it gets smaller, all are anti-aliased but the first, as in PIL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Resample {
    /// The nearest pixel
    Nearest,
    /// Linear in both directions
    Bilinear,
    /// Cubic in both directions (Catmull-Rom)
    Bicubic,
    /// A windowed sinc of three lobes
    Lanczos,
}

impl Resample {
    fn filter(self) -> FilterType {
        match self {
            Resample::Nearest => FilterType::Nearest,
            Resample::Bilinear => FilterType::Triangle,
            Resample::Bicubic => FilterType::CatmullRom,
            Resample::Lanczos => FilterType::Lanczos3,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Resample::Nearest => "nearest",
            Resample::Bilinear => "bilinear",
            Resample::Bicubic => "bicubic",
            Resample::Lanczos => "lanczos",
        }
    }
}

/// How an image is prepared.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Transform {
    /// Width and height of the result, in pixels.
    pub side: usize,
    /// Without augmentation the shorter side is scaled to this length and the middle is cut out; at least `side`.
    pub resize: usize,
    /// Whether both sides are scaled to that length, which changes their proportion.
    pub squash: bool,
    /// How it is scaled.
    pub resample: Resample,
    /// Mean of each color, of values in `[0, 1]`: subtracted.
    pub mean: [f32; 3],
    /// Standard deviation of each color: divided by.
    pub deviation: [f32; 3],
    /// `None` in evaluations.
    pub augmentation: Option<Augmentation>,
}

/// A window of an image, in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Window {
    left: u32,
    top: u32,
    width: u32,
    height: u32,
}

impl Transform {
    /// As ImageNet classifiers of torchvision expect: 256, then the middle 224.
    pub const IMAGENET: Self = Self {
        side: 224,
        resize: 256,
        squash: false,
        resample: Resample::Bicubic,
        mean: [0.485, 0.456, 0.406],
        deviation: [0.229, 0.224, 0.225],
        augmentation: None,
    };

    /// As OpenAI's CLIP expects.
    pub const CLIP: Self = Self {
        side: 224,
        resize: 224,
        squash: false,
        resample: Resample::Bicubic,
        mean: [0.481_454_66, 0.457_827_5, 0.408_210_73],
        deviation: [0.268_629_54, 0.261_302_6, 0.275_777_1],
        augmentation: None,
    };

    /// As Google's ViT of Hugging Face expects.
    pub const VIT: Self = Self { mean: [0.5; 3], deviation: [0.5; 3], ..Self::CLIP };

    /// Reads an image and gives `3 * side * side` numbers: all of red, then green, then blue, row by row; see [`decode`].
    /// `seed` makes the augmentation.
    ///
    /// # Errors
    ///
    /// The file cannot be read, or as [`decode`].
    pub fn read(&self, path: &Path, seed: u64) -> Result<Vec<f32>> {
        let bytes = std::fs::read(path).context("cannot be read")?;
        // By content: data sets have PNG images called `.jpg`.
        Ok(self.apply(&decode(&bytes)?, seed))
    }

    fn apply(&self, image: &RgbImage, seed: u64) -> Vec<f32> {
        let side = self.side as u32;
        let (window, mirrored) = match self.augmentation {
            None => (self.middle(image.width(), image.height()), false),
            Some(augmentation) => {
                let mut random = ChaCha8Rng::seed_from_u64(seed);
                let window = augmentation.window(image.width(), image.height(), &mut random);
                (window, augmentation.mirror && unit(&mut random) < 0.5)
            }
        };
        let Window { left, top, width, height } = window;
        let part = imageops::crop_imm(image, left, top, width, height);
        let mut scaled = imageops::resize(&*part, side, side, self.resample.filter());
        if mirrored {
            imageops::flip_horizontal_in_place(&mut scaled);
        }
        let mut values = vec![0.0; 3 * self.side * self.side];
        for (color, plane) in values.chunks_exact_mut(self.side * self.side).enumerate() {
            let (mean, deviation) = (self.mean[color], self.deviation[color]);
            for (value, pixel) in plane.iter_mut().zip(scaled.pixels()) {
                *value = (f32::from(pixel.0[color]) / 255.0 - mean) / deviation;
            }
        }
        values
    }

    /// What remains after scaling and cutting out the middle, in the image's pixels.
    fn middle(&self, width: u32, height: u32) -> Window {
        let share = self.side as f64 / self.resize as f64;
        let part = |length: u32| ((f64::from(length) * share).round() as u32).clamp(1, length);
        let shorter = width.min(height);
        let (w, h) = if self.squash { (part(width), part(height)) } else { (part(shorter), part(shorter)) };
        Window { left: (width - w) / 2, top: (height - h) / 2, width: w, height: h }
    }
}

impl fmt::Display for Transform {
    /// For the terminal.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { side, resize, mean, deviation, .. } = self;
        let sides = if self.squash { "both sides" } else { "the shorter side" };
        write!(f, "{sides} scaled to {resize} pixels ({})", self.resample.name())?;
        if side < resize || !self.squash {
            write!(f, ", the middle {side} x {side} cut out")?;
        }
        write!(f, "; mean {mean:?}, deviation {deviation:?}")
    }
}

impl Augmentation {
    /// The window of "random resized crop" (torchvision): ten attempts, then the largest middle one of a fitting aspect.
    fn window(&self, width: u32, height: u32, random: &mut ChaCha8Rng) -> Window {
        const ASPECTS: [f64; 2] = [3.0 / 4.0, 4.0 / 3.0];
        let area = f64::from(width) * f64::from(height);
        for _ in 0..10 {
            let target = area * (self.smallest_area + (1.0 - self.smallest_area) * unit(random));
            let aspect = (ASPECTS[0].ln() + (ASPECTS[1] / ASPECTS[0]).ln() * unit(random)).exp();
            let w = (target * aspect).sqrt().round() as u32;
            let h = (target / aspect).sqrt().round() as u32;
            if (1..=width).contains(&w) && (1..=height).contains(&h) {
                let at = |room: u32, random: &mut ChaCha8Rng| (unit(random) * f64::from(room + 1)) as u32;
                return Window {
                    left: at(width - w, random),
                    top: at(height - h, random),
                    width: w,
                    height: h,
                };
            }
        }
        let fitted = f64::from(width) / f64::from(height);
        let (w, h) = if fitted < ASPECTS[0] {
            (width, (f64::from(width) / ASPECTS[0]).round() as u32)
        } else if fitted > ASPECTS[1] {
            ((f64::from(height) * ASPECTS[1]).round() as u32, height)
        } else {
            (width, height)
        };
        Window { left: (width - w) / 2, top: (height - h) / 2, width: w, height: h }
    }
}

/// Uniform in `[0, 1)`.
fn unit(random: &mut ChaCha8Rng) -> f64 {
    (random.next_u64() >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use image::Rgb;

    use super::*;

    const PLAIN: Transform =
        Transform { side: 4, resize: 4, mean: [0.0; 3], deviation: [1.0; 3], ..Transform::VIT };

    /// Red grows to the right, green downwards.
    fn ramp(width: u32, height: u32) -> RgbImage {
        RgbImage::from_fn(width, height, |x, y| Rgb([x as u8 * 10, y as u8 * 10, 30]))
    }

    #[test]
    fn the_middle_is_cut_out_and_normalized_plane_by_plane() {
        let transform = Transform { mean: [0.0, 0.0, 0.2], deviation: [1.0, 1.0, 0.5], ..PLAIN };
        // 8 x 4 pixels: columns 2 to 5, unscaled.
        let values = transform.apply(&ramp(8, 4), 0);
        let expected = |value: f32| value / 255.0;
        assert_eq!(values.len(), 48);
        assert!((values[0] - expected(20.0)).abs() < 1e-6 && (values[3] - expected(50.0)).abs() < 1e-6);
        assert!((values[16] - 0.0).abs() < 1e-6 && (values[16 + 12] - expected(30.0)).abs() < 1e-6);
        assert!((values[32] - (expected(30.0) - 0.2) / 0.5).abs() < 1e-6);
        // Scaled to 8 first, the middle 4 is half of the shorter side.
        let window = Transform { resize: 8, ..PLAIN }.middle(100, 40);
        assert_eq!(window, Window { left: 40, top: 10, width: 20, height: 20 });
        // Squashed to 8 by 8 first, it is half of both sides.
        let window = Transform { resize: 8, squash: true, ..PLAIN }.middle(100, 40);
        assert_eq!(window, Window { left: 25, top: 10, width: 50, height: 20 });
    }

    #[test]
    fn augmentation_depends_on_the_seed_only_and_stays_inside() {
        let augmentation = Augmentation { smallest_area: 0.08, mirror: true };
        let transform = Transform { augmentation: Some(augmentation), ..PLAIN };
        let image = ramp(20, 13);
        assert_eq!(transform.apply(&image, 5), transform.apply(&image, 5));
        assert_ne!(transform.apply(&image, 5), transform.apply(&image, 6));
        let mirrored = (0..200).filter(|seed| {
            let values = transform.apply(&image, *seed);
            values[0] > values[3]
        });
        let mirrored = mirrored.count();
        assert!((70..130).contains(&mirrored), "{mirrored} of 200 mirrored");
        let mut random = ChaCha8Rng::seed_from_u64(1);
        let mut smallest = f64::INFINITY;
        for _ in 0..500 {
            let window = augmentation.window(20, 13, &mut random);
            assert!(window.left + window.width <= 20 && window.top + window.height <= 13, "{window:?}");
            smallest = smallest.min(f64::from(window.width * window.height) / 260.0);
        }
        assert!((0.05..0.2).contains(&smallest), "{smallest}");
        // No window of a fitting aspect and size: the middle.
        let strip = Augmentation { smallest_area: 1.0, mirror: false }.window(40, 3, &mut random);
        assert_eq!(strip, Window { left: 18, top: 0, width: 4, height: 3 });
    }

    #[test]
    fn files_are_known_by_their_content_and_damaged_ones_are_errors() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.jpg");
        ramp(8, 4).save_with_format(&path, image::ImageFormat::Png).unwrap();
        assert_eq!(PLAIN.read(&path, 0).unwrap(), PLAIN.apply(&ramp(8, 4), 0));
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
        assert!(format!("{:#}", PLAIN.read(&path, 0).unwrap_err()).contains("cannot be decoded"));
        let missing = PLAIN.read(&folder.path().join("b.jpg"), 0).unwrap_err();
        assert!(format!("{missing:#}").contains("cannot be read"));
    }
}
