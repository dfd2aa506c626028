//! A labeled grid of small images as one SVG.

use std::fmt::Write as _;

use anyhow::{Context, Result, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// Rows of equally many square images under one label per row.
pub struct Mosaic<'a> {
    /// Above the grid.
    pub title: &'a str,
    /// Width and height of every image in pixels.
    pub side: usize,
    /// Label and images (rows of red, green, blue bytes) of each row.
    pub rows: Vec<(&'a str, Vec<&'a [u8]>)>,
}

/// Pixels of the picture per pixel of an image.
const SCALE: usize = 2;
/// Pixels of an image between two images.
const GAP: usize = 2;
/// Pixels of the picture left of the images.
const LEFT: usize = 90;
/// Pixels of the picture above the images.
const TOP: usize = 30;

impl Mosaic<'_> {
    /// The SVG; the images are one embedded PNG.
    ///
    /// # Errors
    ///
    /// No rows, rows of different lengths, or images of another size.
    pub fn svg(&self) -> Result<String> {
        let columns = self.rows.first().context("a mosaic needs a row")?.1.len();
        let (cell, bytes) = (self.side + GAP, 3 * self.side * self.side);
        ensure!(columns > 0, "a mosaic needs an image");
        let (width, height) = (columns * cell, self.rows.len() * cell);
        let mut pixels = vec![255; 3 * width * height];
        for (row, (label, images)) in self.rows.iter().enumerate() {
            let fits = images.len() == columns && images.iter().all(|image| image.len() == bytes);
            ensure!(fits, "row `{label}` needs {columns} images of {bytes} bytes");
            for (column, image) in images.iter().enumerate() {
                for (line, source) in image.chunks_exact(3 * self.side).enumerate() {
                    let start = 3 * ((row * cell + line) * width + column * cell);
                    pixels[start..][..source.len()].copy_from_slice(source);
                }
            }
        }
        let picture = STANDARD.encode(png(&pixels, width, height)?);
        let (wide, high) = (width * SCALE, height * SCALE);
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{}\" height=\"{}\" font-family=\"sans-serif\">\n\
             <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
             <text x=\"{LEFT}\" y=\"20\" font-size=\"16\">{}</text>\n\
             <image x=\"{LEFT}\" y=\"{TOP}\" width=\"{wide}\" height=\"{high}\" style=\"image-rendering:pixelated\" \
             href=\"data:image/png;base64,{picture}\"/>\n",
            LEFT + wide,
            TOP + high,
            self.title,
        );
        for (row, (label, _)) in self.rows.iter().enumerate() {
            let y = TOP + SCALE * (row * cell + self.side / 2) + 5;
            writeln!(
                svg,
                "<text x=\"{}\" y=\"{y}\" font-size=\"14\" text-anchor=\"end\">{label}</text>",
                LEFT - 8
            )?;
        }
        svg.push_str("</svg>\n");
        Ok(svg)
    }
}

fn png(pixels: &[u8], width: usize, height: usize) -> Result<Vec<u8>> {
    let mut file = Vec::new();
    let mut encoder = png::Encoder::new(&mut file, u32::try_from(width)?, u32::try_from(height)?);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    let mut writer = encoder.write_header()?;
    writer.write_image_data(pixels)?;
    writer.finish()?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mosaic_embeds_its_images_and_names_its_rows() {
        let image = [7; 12];
        let mosaic = Mosaic {
            title: "samples",
            side: 2,
            rows: vec![("real", vec![&image]), ("sketch", vec![&image])],
        };
        let svg = mosaic.svg().unwrap();
        for word in ["samples", "real", "sketch", "base64,iVBORw0KGgo"] {
            assert!(svg.contains(word), "{word}");
        }
    }

    #[test]
    fn rows_of_different_lengths_are_refused() {
        let image = [7; 12];
        let mosaic = Mosaic { title: "t", side: 2, rows: vec![("a", vec![&image]), ("b", vec![])] };
        assert!(mosaic.svg().unwrap_err().to_string().contains("row `b` needs 1 images"));
    }
}
