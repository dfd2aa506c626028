//! From a drawing to pixels on white.

use anyhow::{Context, Result, ensure};
use image::{RgbImage, RgbaImage, imageops};
use resvg::tiny_skia::{Color, Pixmap, Transform};
use resvg::usvg::{Options, Tree};

/// A drawing, as a package has it.
#[derive(Debug, Clone)]
pub(crate) enum Drawing {
    Svg(String),
    Webp(Vec<u8>),
}

impl Drawing {
    /// Square, `side` pixels wide.
    ///
    /// # Errors
    ///
    /// The drawing is damaged.
    pub(crate) fn render(&self, side: u32) -> Result<RgbImage> {
        match self {
            Drawing::Svg(text) => svg(text, side),
            Drawing::Webp(bytes) => {
                let image = image::load_from_memory_with_format(bytes, image::ImageFormat::WebP)?;
                Ok(reduced(&on_white(&image.into_rgba8()), side))
            }
        }
    }
}

/// The whole view box, in the middle.
fn svg(text: &str, side: u32) -> Result<RgbImage> {
    let tree = Tree::from_str(text, &Options::default())?;
    let mut pixels = Pixmap::new(side, side).context("a picture of no pixels")?;
    pixels.fill(Color::WHITE);
    let (width, height) = (tree.size().width(), tree.size().height());
    let scale = side as f32 / width.max(height);
    let margin = |length: f32| 0.5 * (side as f32 - scale * length);
    let place = Transform::from_row(scale, 0.0, 0.0, scale, margin(width), margin(height));
    resvg::render(&tree, place, &mut pixels.as_mut());
    // On white nothing is transparent: colors are not multiplied by anything.
    let colors =
        pixels.pixels().iter().flat_map(|pixel| [pixel.red(), pixel.green(), pixel.blue()]).collect();
    RgbImage::from_raw(side, side, colors).context("three colors for each pixel")
}

fn on_white(image: &RgbaImage) -> RgbImage {
    RgbImage::from_fn(image.width(), image.height(), |x, y| {
        let [red, green, blue, alpha] = image.get_pixel(x, y).0.map(u32::from);
        let over = |color: u32| ((color * alpha + 255 * (255 - alpha) + 127) / 255) as u8;
        image::Rgb([over(red), over(green), over(blue)])
    })
}

/// Means of squares of pixels where that comes out even, a windowed sinc otherwise.
fn reduced(image: &RgbImage, side: u32) -> RgbImage {
    if image.width() != image.height() || !image.width().is_multiple_of(side) {
        return imageops::resize(image, side, side, imageops::FilterType::Lanczos3);
    }
    let factor = image.width() / side;
    RgbImage::from_fn(side, side, |x, y| {
        let mut sums = [0u32; 3];
        for (dx, dy) in (0..factor).flat_map(|dx| (0..factor).map(move |dy| (dx, dy))) {
            let pixel = image.get_pixel(x * factor + dx, y * factor + dy).0;
            sums.iter_mut().zip(pixel).for_each(|(sum, color)| *sum += u32::from(color));
        }
        let count = factor * factor;
        image::Rgb(sums.map(|sum| ((sum + count / 2) / count) as u8))
    })
}

/// The bytes of a PNG file.
///
/// # Errors
///
/// None is known.
pub(crate) fn png(image: &RgbImage) -> Result<Vec<u8>> {
    let mut bytes = std::io::Cursor::new(Vec::new());
    image.write_to(&mut bytes, image::ImageFormat::Png)?;
    let bytes = bytes.into_inner();
    ensure!(!bytes.is_empty(), "an empty file");
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drawing_becomes_known_pixels() {
        // The left half is red; the lower right quarter takes the color of the text, which is black.
        let text = "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 8 8' width='8' height='8' color='#000'>\
            <rect width='4' height='8' fill='#f00'/><rect x='4' y='4' width='4' height='4' fill='currentColor'/></svg>";
        let image = Drawing::Svg(text.to_owned()).render(4).unwrap();
        let at = |x, y| image.get_pixel(x, y).0;
        assert_eq!(image.dimensions(), (4, 4));
        assert_eq!([at(0, 0), at(1, 3), at(3, 0), at(2, 3)], [[255, 0, 0], [255, 0, 0], [255; 3], [0; 3]]);
        // A wide view box lies in the middle.
        let wide = text.replace("0 0 8 8", "0 0 8 4").replace("height='8' ", "height='4' ");
        let image = Drawing::Svg(wide).render(8).unwrap();
        let rows: Vec<_> = (0..8).map(|y| image.get_pixel(0, y).0).collect();
        assert_eq!(rows[..2], [[255; 3]; 2]);
        assert_eq!(rows[2..6], [[255, 0, 0]; 4]);
        assert_eq!(rows[6..], [[255; 3]; 2]);
        assert!(Drawing::Svg("<svg".to_owned()).render(4).is_err());
    }

    #[test]
    fn pictures_lie_on_white_and_shrink_to_means() {
        let mut image = RgbaImage::from_pixel(4, 4, image::Rgba([0, 0, 0, 0]));
        // A quarter of the first square is black, and another one is half transparent.
        image.put_pixel(0, 0, image::Rgba([0, 0, 0, 255]));
        image.put_pixel(1, 0, image::Rgba([255, 0, 0, 128]));
        let mut bytes = std::io::Cursor::new(Vec::new());
        image.write_to(&mut bytes, image::ImageFormat::WebP).unwrap();
        let drawing = Drawing::Webp(bytes.into_inner());
        let image = drawing.render(2).unwrap();
        // Red: (0 + 255 + 255 + 255) / 4; green: (0 + 127 + 255 + 255) / 4.
        assert_eq!(image.get_pixel(0, 0).0, [191, 159, 159]);
        assert_eq!(image.get_pixel(1, 1).0, [255; 3]);
        assert_eq!(drawing.render(3).unwrap().dimensions(), (3, 3));
        assert!(Drawing::Webp(b"RIFF".to_vec()).render(2).is_err());
        let file = png(&image).unwrap();
        assert_eq!(image::load_from_memory(&file).unwrap().into_rgb8(), image);
    }
}
