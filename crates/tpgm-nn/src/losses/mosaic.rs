//! Color filters over a sensor, and a loss of networks that fill in what they hide.

use candle_core::{Device, Module, Result, Tensor};

use crate::layers::composed::widened;
use crate::layers::{Conv2d, shape_error};

const OP: &str = "periodic consistency";

/// Bayer's color filters by their two rows of two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bayer {
    /// Red, green; green, blue.
    Rggb,
    /// Blue, green; green, red.
    Bggr,
    /// Green, blue; red, green.
    Gbrg,
    /// Green, red; blue, green.
    Grbg,
}

impl Bayer {
    /// The channel that each of the four pixels has.
    fn channels(self) -> [usize; 4] {
        match self {
            Self::Rggb => [0, 1, 1, 2],
            Self::Bggr => [2, 1, 1, 0],
            Self::Gbrg => [1, 2, 0, 1],
            Self::Grbg => [1, 0, 2, 1],
        }
    }

    /// How far down and to the right an image is moved, around its edges, to be one of [`Bayer::Rggb`].
    fn shift(self) -> (i32, i32) {
        match self {
            Self::Rggb => (0, 0),
            Self::Bggr => (1, 1),
            Self::Gbrg => (1, 0),
            Self::Grbg => (0, 1),
        }
    }

    /// What a sensor behind these filters sees of images of shape (batch, 3, height, width): one channel of each pixel, and 0 in
    /// the others.
    ///
    /// # Errors
    ///
    /// Images of another shape, or with an odd height or width.
    pub fn mosaic(self, images: &Tensor) -> Result<Tensor> {
        let [_, 3, height, width] = *images.dims() else {
            return Err(shape_error(OP, "images must have the shape (batch, 3, height, width)", &[images]));
        };
        if height % 2 + width % 2 != 0 {
            return Err(shape_error(OP, "height and width must be even", &[images]));
        }
        let channels = self.channels();
        let seen = |at: usize| {
            let (channel, y, x) = (at / (height * width), at / width % height, at % width);
            u8::from(channels[2 * (y % 2) + x % 2] == channel)
        };
        let mask: Vec<u8> = (0..3 * height * width).map(seen).collect();
        let mask = Tensor::from_vec(mask, (3, height, width), &Device::Cpu)?;
        images.broadcast_mul(&mask.to_dtype(images.dtype())?.to_device(images.device())?)
    }
}

/// Fills in the two hidden channels of every pixel of a mosaic of [`Bayer::Rggb`] by the mean of their neighbors: what a
/// demosaicking network starts from. At the edges the image is reflected about its last pixels.
///
/// # Errors
///
/// A mosaic that is not of shape (batch, 3, height, width), or smaller than 2 by 2.
pub fn bilinear(mosaic: &Tensor) -> Result<Tensor> {
    let [_, 3, height, width] = *mosaic.dims() else {
        return Err(shape_error(OP, "a mosaic must have the shape (batch, 3, height, width)", &[mosaic]));
    };
    if height < 2 || width < 2 {
        return Err(shape_error(OP, "a mosaic must have 2 by 2 pixels at least", &[mosaic]));
    }
    let reflected = |size: usize| {
        let size = size as u32;
        let all: Vec<u32> = [1].into_iter().chain(0..size).chain([size - 2]).collect();
        Tensor::new(all.as_slice(), mosaic.device())
    };
    let padded = mosaic.index_select(&reflected(height)?, 2)?.index_select(&reflected(width)?, 3)?;
    // Red and blue are at every second pixel of every second row, green is at every second pixel of all.
    let sparse = [[0.25, 0.5, 0.25], [0.5, 1.0, 0.5], [0.25, 0.5, 0.25]];
    let dense = [[0.0, 0.25, 0.0], [0.25, 1.0, 0.25], [0.0, 0.25, 0.0]];
    let kernels = Tensor::new(&[[sparse], [dense], [sparse]], &Device::Cpu)?;
    let kernels = kernels.to_dtype(mosaic.dtype())?.to_device(mosaic.device())?;
    Conv2d::new(kernels).groups(3).forward(&padded)
}

/// What becomes of a mosaic before it is filled in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Translation {
    /// It is moved to the filters that the network knows, and its prediction is moved back.
    #[default]
    Consistent,
    /// As in the published code, where mosaics of [`Bayer::Grbg`] are moved back without having been moved.
    Published,
}

/// The loss, and the mosaics that were compared.
#[derive(Debug, Clone)]
pub struct PeriodicConsistency {
    /// The sum over the patterns of the mean squared error, inside a border of one pixel.
    pub loss: Tensor,
    /// Of each pattern, what was predicted of the raw image.
    pub predictions: Vec<Tensor>,
}

/// Fine-tunes a demosaicking network on a raw image alone, by periodic consistency (as in the code at
/// Aetheryne/SSLdemosaicking). The network's picture of `input` is seen through other `patterns` of filters, filled in, and
/// given to the network again; what comes out must have the raw image's pixels.
///
/// `raw`: a mosaic of [`Bayer::Rggb`] of shape (batch, 3, height, width), even, at least 4 by 4. `input`: what the network
/// gets, usually [`bilinear`] of it. `network` keeps the shape. Only its second pass has a gradient.
///
/// # Errors
///
/// If the shapes do not fit, there are no patterns, or the network fails.
pub fn periodic_consistency(
    network: impl Fn(&Tensor) -> Result<Tensor>,
    input: &Tensor,
    raw: &Tensor,
    patterns: &[Bayer],
    translation: Translation,
) -> Result<PeriodicConsistency> {
    let (height, width) = match *raw.dims() {
        [_, 3, height, width] if height >= 4 && width >= 4 => (height, width),
        _ => {
            let expected = "a raw image must have the shape (batch, 3, height, width), at least 4 by 4";
            return Err(shape_error(OP, expected, &[raw]));
        }
    };
    if patterns.is_empty() {
        return Err(super::distributions::option(OP, "number of patterns", 0.0, "at least 1"));
    }
    let picture = network(input)?.detach();
    if picture.dims() != raw.dims() {
        let expected = "the network's picture must have the raw image's shape";
        return Err(shape_error(OP, expected, &[&picture, raw]));
    }
    let inner = |image: &Tensor| widened(&image.narrow(2, 1, height - 2)?.narrow(3, 1, width - 2)?);
    let target = inner(raw)?;
    let mut predictions = Vec::with_capacity(patterns.len());
    let mut loss = Tensor::zeros((), target.dtype(), target.device())?;
    for &pattern in patterns {
        let (down, right) = pattern.shift();
        let mosaic = pattern.mosaic(&picture)?;
        let moved = match (translation, pattern) {
            (Translation::Published, Bayer::Grbg) => mosaic,
            _ => mosaic.roll(down, 2)?.roll(right, 3)?,
        };
        let again = network(&bilinear(&moved)?)?;
        let prediction = Bayer::Rggb.mosaic(&again.roll(-down, 2)?.roll(-right, 3)?)?;
        loss = (loss + (inner(&prediction)? - &target)?.sqr()?.mean_all()?)?;
        predictions.push(prediction);
    }
    Ok(PeriodicConsistency { loss, predictions })
}

#[cfg(test)]
mod tests {
    use candle_core::DType;

    use super::*;

    fn image(height: usize, width: usize) -> Tensor {
        let values: Vec<f64> = (0..3 * height * width).map(|i| (i as f64 * 0.7).sin()).collect();
        Tensor::from_vec(values, (1, 3, height, width), &Device::Cpu).unwrap()
    }

    fn largest(x: &Tensor) -> f64 {
        x.abs().unwrap().max_all().unwrap().to_scalar().unwrap()
    }

    #[test]
    fn every_pattern_is_the_usual_one_when_it_is_moved() {
        let picture = image(4, 6);
        for pattern in [Bayer::Rggb, Bayer::Bggr, Bayer::Gbrg, Bayer::Grbg] {
            let (down, right) = pattern.shift();
            let roll = |x: &Tensor| x.roll(down, 2).unwrap().roll(right, 3).unwrap();
            let moved = roll(&pattern.mosaic(&picture).unwrap());
            let expected = Bayer::Rggb.mosaic(&roll(&picture)).unwrap();
            assert_eq!(largest(&(moved - expected).unwrap()), 0.0, "{pattern:?}");
        }
    }

    /// Neighbors of a plane have the plane's mean, and in one color nothing can go wrong.
    #[test]
    fn planes_are_filled_in_and_one_color_is_consistent() {
        let plane = |slope: f64| {
            let values: Vec<f64> = (0..3 * 8 * 8).map(|i| (i / 64) as f64 + slope * (i % 8) as f64).collect();
            Tensor::from_vec(values, (1, 3, 8, 8), &Device::Cpu).unwrap()
        };
        let filled = bilinear(&Bayer::Rggb.mosaic(&plane(0.1)).unwrap()).unwrap();
        let inner = |x: &Tensor| x.narrow(2, 1, 6).unwrap().narrow(3, 1, 6).unwrap();
        assert!(largest(&(inner(&filled) - inner(&plane(0.1))).unwrap()) < 1e-12);
        let loss = |slope, translation| {
            let raw = Bayer::Rggb.mosaic(&plane(slope)).unwrap();
            let identity = |x: &Tensor| Ok(x.clone());
            let input = bilinear(&raw).unwrap();
            let found = periodic_consistency(identity, &input, &raw, &[Bayer::Grbg], translation).unwrap();
            found.loss.to_scalar::<f64>().unwrap()
        };
        assert!(loss(0.0, Translation::Consistent) < 1e-28);
        // Moved back without having been moved, a slope is off by a pixel, 0.1 in one of three channels, and not at the edges
        // alone.
        let [moved, not_moved] = [Translation::Consistent, Translation::Published].map(|t| loss(0.1, t));
        assert!(not_moved > 0.7 * 0.01 / 3.0 && moved < 0.5 * not_moved, "{moved} {not_moved}");
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let same = |x: &Tensor| Ok(x.clone());
        let narrow = |x: &Tensor| x.narrow(3, 0, 4);
        let gray = Tensor::zeros((1, 1, 4, 4), DType::F32, &Device::Cpu).unwrap();
        let good = image(4, 6);
        let usual = Translation::default();
        for (result, expected) in [
            (Bayer::Rggb.mosaic(&gray), "images must have the shape (batch, 3, height, width)"),
            (Bayer::Rggb.mosaic(&image(4, 5)), "height and width must be even"),
            (bilinear(&image(1, 4)), "2 by 2 pixels at least"),
            (
                periodic_consistency(same, &good, &image(2, 4), &[Bayer::Bggr], usual).map(|x| x.loss),
                "at least 4 by 4",
            ),
            (periodic_consistency(same, &good, &good, &[], usual).map(|x| x.loss), "number of patterns"),
            (
                periodic_consistency(narrow, &good, &good, &[Bayer::Bggr], usual).map(|x| x.loss),
                "the network's picture must have the raw image's shape",
            ),
        ] {
            let error = result.err().map(|error| error.to_string()).unwrap_or_default();
            assert!(error.contains(expected), "{error}");
        }
    }
}
