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
#[serde(untagged)]
pub enum Augmentation {
    /// For photographs: a window is cut out.
    Window(Crop),
    /// For drawings on white: they are turned, scaled and moved, and stay whole for the most part.
    Affine(Affine),
}

/// A window of an image.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Crop {
    /// A window of at least this share of the image's area is cut out, of an aspect between 3:4 and 4:3, in `(0, 1]`.
    pub smallest_area: f64,
    /// Whether half of the images are mirrored.
    pub mirror: bool,
}

/// A turn, a scale and a shift, in one bilinear resampling; what comes in from outside is white.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Affine {
    /// Turned by up to so many degrees, either way.
    pub degrees: f64,
    /// Scaled by a factor between these.
    pub scale: [f64; 2],
    /// Moved by up to this share of the side, in both directions.
    pub shift: f64,
    /// Whether half of the images are mirrored.
    pub mirror: bool,
}

impl Affine {
    /// For emoji: a drawing stays one of its thing.
    pub const EMOJI: Self = Self { degrees: 10.0, scale: [0.8, 1.15], shift: 0.08, mirror: true };
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

    /// As EfficientNet-Lite expects: `(v - 127) / 128` of bytes.
    pub const EFFICIENTNET_LITE: Self =
        Self { resize: 224, mean: [127.0 / 255.0; 3], deviation: [128.0 / 255.0; 3], ..Self::IMAGENET };

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
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let (window, mirrored) = match self.augmentation {
            Some(Augmentation::Window(crop)) => {
                let window = crop.window(image.width(), image.height(), &mut random);
                (window, crop.mirror && unit(&mut random) < 0.5)
            }
            None | Some(Augmentation::Affine(_)) => (self.middle(image.width(), image.height()), false),
        };
        let Window { left, top, width, height } = window;
        let part = imageops::crop_imm(image, left, top, width, height);
        let mut scaled = imageops::resize(&*part, side, side, self.resample.filter());
        if mirrored {
            imageops::flip_horizontal_in_place(&mut scaled);
        }
        if let Some(Augmentation::Affine(affine)) = self.augmentation {
            return self.normalized(&affine.apply(&scaled, &mut random));
        }
        let colors: Vec<_> = scaled.pixels().map(|pixel| pixel.0.map(f32::from)).collect();
        self.normalized(&colors)
    }

    /// Of colors from 0 to 255, row by row.
    fn normalized(&self, pixels: &[[f32; 3]]) -> Vec<f32> {
        let mut values = vec![0.0; 3 * self.side * self.side];
        for (color, plane) in values.chunks_exact_mut(self.side * self.side).enumerate() {
            let (mean, deviation) = (self.mean[color], self.deviation[color]);
            for (value, pixel) in plane.iter_mut().zip(pixels) {
                *value = (pixel[color] / 255.0 - mean) / deviation;
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

impl Affine {
    /// A turned, scaled and moved image of the same size: colors from 0 to 255.
    fn apply(self, image: &RgbImage, random: &mut ChaCha8Rng) -> Vec<[f32; 3]> {
        let mut between = |low: f64, high: f64| low + (high - low) * unit(random);
        let angle = between(-self.degrees, self.degrees).to_radians();
        let scale = between(self.scale[0], self.scale[1]);
        let side = f64::from(image.width());
        let shift = [(); 2].map(|()| side * between(-self.shift, self.shift));
        let mirrored = self.mirror && unit(random) < 0.5;
        let middle = 0.5 * (side - 1.0);
        let (sin, cos) = (angle.sin() / scale, angle.cos() / scale);
        let white_outside = |x: i64, y: i64| {
            let inside = x >= 0 && y >= 0 && x < i64::from(image.width()) && y < i64::from(image.height());
            if inside { image.get_pixel(x as u32, y as u32).0.map(f32::from) } else { [255.0; 3] }
        };
        let at = |x: f64, y: f64| {
            // Where the pixel comes from.
            let (dx, dy) = (x - middle - shift[0], y - middle - shift[1]);
            let (mut from_x, from_y) = (cos * dx + sin * dy + middle, cos * dy - sin * dx + middle);
            if mirrored {
                from_x = side - 1.0 - from_x;
            }
            let (left, top) = (from_x.floor(), from_y.floor());
            let (right, below) = ((from_x - left) as f32, (from_y - top) as f32);
            let corner = |x: i64, y: i64| white_outside(left as i64 + x, top as i64 + y);
            let [a, b, c, d] = [corner(0, 0), corner(1, 0), corner(0, 1), corner(1, 1)];
            let mix = |color: usize| {
                let upper = a[color] + right * (b[color] - a[color]);
                let lower = c[color] + right * (d[color] - c[color]);
                upper + below * (lower - upper)
            };
            [mix(0), mix(1), mix(2)]
        };
        let (width, height) = image.dimensions();
        (0..height)
            .flat_map(|y| (0..width).map(move |x| (x, y)))
            .map(|(x, y)| at(f64::from(x), f64::from(y)))
            .collect()
    }
}

impl Crop {
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
        let crop = Crop { smallest_area: 0.08, mirror: true };
        let transform = Transform { augmentation: Some(Augmentation::Window(crop)), ..PLAIN };
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
            let window = crop.window(20, 13, &mut random);
            assert!(window.left + window.width <= 20 && window.top + window.height <= 13, "{window:?}");
            smallest = smallest.min(f64::from(window.width * window.height) / 260.0);
        }
        assert!((0.05..0.2).contains(&smallest), "{smallest}");
        // No window of a fitting aspect and size: the middle.
        let strip = Crop { smallest_area: 1.0, mirror: false }.window(40, 3, &mut random);
        assert_eq!(strip, Window { left: 18, top: 0, width: 4, height: 3 });
    }

    #[test]
    fn an_affine_augmentation_that_does_nothing_changes_nothing_and_a_mirror_mirrors() {
        let still = Affine { degrees: 0.0, scale: [1.0; 2], shift: 0.0, mirror: false };
        let with = |affine| Transform { augmentation: Some(Augmentation::Affine(affine)), ..PLAIN };
        let image = ramp(4, 4);
        assert_eq!(with(still).apply(&image, 1), PLAIN.apply(&image, 0));
        let mirrored = (0..200).filter(|seed| {
            let values = with(Affine { mirror: true, ..still }).apply(&image, *seed);
            assert!((values[0] - 30.0 / 255.0).abs() < 1e-6 || values[0] == 0.0);
            values[0] > values[3]
        });
        let mirrored = mirrored.count();
        assert!((70..130).contains(&mirrored), "{mirrored} of 200 mirrored");
    }

    #[test]
    fn a_quarter_turn_half_the_size_and_a_shift_are_where_they_belong() {
        let exact = |degrees: f64, scale: f64| {
            // The first drawn number is in the middle of an empty interval: the angle is what is asked for.
            let affine = Affine { degrees: 0.0, scale: [scale; 2], shift: 0.0, mirror: false };
            let mut random = ChaCha8Rng::seed_from_u64(0);
            if degrees == 0.0 {
                return affine.apply(&ramp(4, 4), &mut random);
            }
            // Of many draws up to 90 degrees, one is nearly that.
            let affine = Affine { degrees, ..affine };
            let seed = (0..20_000).find(|seed| unit(&mut ChaCha8Rng::seed_from_u64(*seed)) > 0.9999).unwrap();
            affine.apply(&ramp(4, 4), &mut ChaCha8Rng::seed_from_u64(seed))
        };
        // Clockwise: the left column becomes the upper row. Red grows downwards then.
        let turned = exact(90.0, 1.0);
        assert!(turned[0][0] < 1.0 && (turned[12][0] - 30.0).abs() < 1.0, "{turned:?}");
        assert!((turned[0][1] - 30.0).abs() < 1.0 && turned[3][1] < 1.0, "{turned:?}");
        // Half the size: the corners are white, and the middle has the means of two pixels by two.
        let small = exact(0.0, 0.5);
        assert_eq!(small[0], [255.0; 3]);
        assert_eq!(small[5], [5.0, 5.0, 30.0]);
        let moved = Affine { degrees: 0.0, scale: [1.0; 2], shift: 0.25, mirror: false };
        let far = (0..500).map(|seed| moved.apply(&ramp(4, 4), &mut ChaCha8Rng::seed_from_u64(seed))[5][0]);
        let (low, high) = far.fold((f32::MAX, f32::MIN), |(low, high), red| (low.min(red), high.max(red)));
        // By one pixel at most, either way.
        assert!((0.0..0.5).contains(&low) && (19.5..=20.0).contains(&high), "{low} {high}");
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
