//! From the bytes of an image file to its pixels.

use std::io::Cursor;

use anyhow::{Context, Result, bail, ensure};
use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, Limits, RgbImage};

/// What is read, for messages.
pub(super) const FORMATS: &str = "JPEG, PNG, WebP, BMP, GIF or TIFF";

/// Bytes that the pixels of a file may take: 89 million of eight bits and three colors. A file of a few bytes can claim more
/// than there is memory.
const MOST: u64 = 256 << 20;

/// Bytes at the begin of a file that show its format.
pub(super) const MAGIC: usize = 32;

/// Whether a file that begins so is an image that [`decode`] reads.
pub(super) fn is_image(begin: &[u8]) -> bool {
    image::guess_format(begin).is_ok_and(|format| format.reading_enabled())
}

/// The pixels of a JPEG, PNG, WebP, BMP, GIF or TIFF image, by its content; of an animation the first. They are turned as
/// the camera says (EXIF orientation). Gray becomes color, 16 bits become 8, transparency is dropped.
///
/// # Errors
///
/// Another format, a damaged image, also a JPEG that is cut off, an image without pixels or of more than 256 MiB, and CMYK
/// colors without Adobe's marker, which may be meant one way or the other.
pub fn decode(bytes: &[u8]) -> Result<RgbImage> {
    let reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format()?;
    let Some(format) = reader.format() else { bail!("cannot be decoded: it is no {FORMATS} image") };
    if format == ImageFormat::Jpeg {
        jpeg(bytes).context("cannot be decoded")?;
    }
    let mut limits = Limits::default();
    limits.max_alloc = Some(MOST);
    let read = || -> Result<DynamicImage> {
        let mut reader = reader;
        reader.limits(limits);
        let mut decoder = reader.into_decoder()?;
        let (width, height) = decoder.dimensions();
        ensure!(width > 0 && height > 0, "has no pixels");
        ensure!(decoder.total_bytes() <= MOST, "{width} x {height} pixels take more than {} MiB", MOST >> 20);
        // A damaged note of the camera is no damaged image.
        let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
        let mut image = DynamicImage::from_decoder(decoder)?;
        image.apply_orientation(orientation);
        Ok(image)
    };
    Ok(read().context("cannot be decoded")?.into_rgb8())
}

/// Checks what the decoder lets pass: it fills what is missing of a JPEG with gray.
///
/// # Errors
///
/// The file ends before the image does, or its colors have two meanings.
fn jpeg(bytes: &[u8]) -> Result<()> {
    let cut = || format!("it is cut off: a JPEG image without an end, {} bytes", bytes.len());
    let (mut at, mut adobe, mut components, mut scans) = (2, false, 0, 0);
    loop {
        // A marker is 0xFF, as often as one likes, and a byte that is neither 0 nor 0xFF.
        let byte = *bytes.get(at).with_context(cut)?;
        let next = bytes.get(at + 1).copied();
        at += 1;
        let marker = match (byte, next) {
            (0xFF, None) => bail!(cut()),
            (0xFF, Some(marker)) if marker != 0 && marker != 0xFF => marker,
            // Of a scan, or between two segments.
            _ => continue,
        };
        at += 1;
        match marker {
            0xD9 => break, // end of image
            0xD0..=0xD8 | 0x01 => continue,
            _ => {}
        }
        let length = bytes.get(at..at + 2).with_context(cut)?;
        let length = usize::from(u16::from_be_bytes([length[0], length[1]]));
        ensure!(length >= 2, "a segment of a JPEG image with a length of {length}");
        let segment = bytes.get(at + 2..at + length).with_context(cut)?;
        match marker {
            // Start of frame; C4, C8 and CC are tables and an extension.
            0xC0..=0xCF if !matches!(marker, 0xC4 | 0xC8 | 0xCC) => {
                components = segment.get(5).copied().context("a JPEG image without components")?;
            }
            0xDA => scans += 1,
            0xEE => adobe |= segment.starts_with(b"Adobe"),
            _ => {}
        }
        at += length;
    }
    ensure!(scans > 0, "{}", cut());
    ensure!(components != 4 || adobe, "CMYK colors without Adobe's marker: save it in RGB");
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use image::{ImageFormat, Rgb};

    use super::*;

    fn file(name: &str) -> Vec<u8> {
        std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/real_files/image").join(name))
            .unwrap()
    }

    fn error(bytes: &[u8]) -> String {
        format!("{:#}", decode(bytes).unwrap_err())
    }

    #[test]
    fn a_jpeg_that_is_cut_off_is_refused_wherever_it_is_cut() {
        let whole = file("odd/plain.jpg");
        decode(&whole).unwrap();
        for length in 3..whole.len() {
            let error = error(&whole[..length]);
            assert!(error.contains("cut off"), "{length} of {}: {error}", whole.len());
        }
        assert!(error(&file("odd/cut_half.jpg")).contains("cut off"));
        assert!(error(&file("sets/truncated/apple/0.jpg")).contains("cut off"));
        // What a broken download leaves of the rest.
        let mut zeros = file("odd/cut_half.jpg");
        zeros.resize(3 * zeros.len(), 0);
        assert!(error(&zeros).contains("cut off"));
        // A camera writes more after the end.
        decode(&[&whole[..], b"preview"].concat()).unwrap();
    }

    #[test]
    fn other_formats_that_are_cut_off_are_refused_too() {
        let image = RgbImage::from_fn(40, 30, |x, y| Rgb([x as u8 * 5, y as u8 * 7, (x * y) as u8]));
        for format in
            [ImageFormat::Png, ImageFormat::WebP, ImageFormat::Bmp, ImageFormat::Gif, ImageFormat::Tiff]
        {
            let mut bytes = Cursor::new(Vec::new());
            image.write_to(&mut bytes, format).unwrap();
            let bytes = bytes.into_inner();
            assert_eq!(decode(&bytes).unwrap().dimensions(), (40, 30), "{format:?}");
            for eighth in 1..8 {
                assert!(decode(&bytes[..bytes.len() * eighth / 8]).is_err(), "{format:?} {eighth}");
            }
        }
    }

    /// The upper half is blue and the lower red, or turned by what the file says.
    #[test]
    fn images_are_turned_as_the_camera_says() {
        let pixels = |name: &str| decode(&file(name)).unwrap();
        let plain = pixels("odd/exif1.jpg");
        assert_eq!(plain, pixels("odd/plain.jpg"));
        assert_eq!(plain.dimensions(), (16, 8));
        let close = |a: &RgbImage, b: &RgbImage| {
            a.dimensions() == b.dimensions() && a.iter().zip(b.iter()).all(|(a, b)| a.abs_diff(*b) <= 1)
        };
        use image::imageops::{rotate90, rotate180, rotate270};
        assert!(close(&pixels("odd/exif3.jpg"), &rotate180(&plain)));
        assert!(close(&pixels("odd/exif6.jpg"), &rotate90(&plain)));
        assert!(close(&pixels("odd/exif8.jpg"), &rotate270(&plain)));
        let turned = pixels("odd/exif6.jpg");
        assert_eq!(turned.dimensions(), (8, 16));
        let [upper, lower] = [turned.get_pixel(4, 3).0, turned.get_pixel(4, 12).0];
        assert!(upper[2] > 200 && upper[0] < 50 && lower[0] > 200 && lower[2] < 50, "{upper:?} {lower:?}");
    }

    #[test]
    fn odd_colors_are_right() {
        // 40000 of 65535.
        assert!(decode(&file("odd/gray16.png")).unwrap().pixels().all(|pixel| pixel.0 == [156; 3]));
        for name in ["odd/cmyk_pillow.jpg", "odd/ycck.jpg"] {
            let image = decode(&file(name)).unwrap();
            let near = |pixel: &Rgb<u8>| pixel.0.iter().zip([200, 60, 40]).all(|(a, b)| a.abs_diff(b) <= 2);
            assert!(
                image.dimensions() == (16, 16) && image.pixels().all(near),
                "{name}: {:?}",
                image.get_pixel(0, 0)
            );
        }
        // Without the marker of Adobe nobody knows whether CMYK is inverted.
        let plain = file("odd/cmyk_pillow.jpg");
        let at = plain.windows(2).position(|pair| pair == [0xFF, 0xEE]).unwrap();
        let without = [&plain[..at], &plain[at + 16..]].concat();
        assert!(error(&without).contains("CMYK colors without Adobe's marker"), "{}", error(&without));
    }

    /// Width and height of a file of a few hundred bytes become 65000: nothing is allocated for them.
    #[test]
    fn an_image_that_claims_more_than_there_is_memory_is_refused() {
        let image = RgbImage::new(40, 30);
        for (format, at, big_endian) in [
            (ImageFormat::Bmp, [18, 22], false),
            (ImageFormat::Gif, [6, 8], false),
            (ImageFormat::Jpeg, [usize::MAX; 2], true),
        ] {
            let mut bytes = Cursor::new(Vec::new());
            image.write_to(&mut bytes, format).unwrap();
            let mut bytes = bytes.into_inner();
            let frame = bytes.windows(2).position(|pair| pair == [0xFF, 0xC0]).unwrap_or(0);
            for (at, length) in at.into_iter().zip([40u16, 30]) {
                // Of JPEG: marker, length of the segment, bits, height, width.
                let at = if at == usize::MAX { frame + if length == 40 { 7 } else { 5 } } else { at };
                let [before, after] =
                    [length, 65_000].map(|n| if big_endian { n.to_be_bytes() } else { n.to_le_bytes() });
                assert_eq!(bytes[at..at + 2], before, "{format:?}");
                bytes[at..at + 2].copy_from_slice(&after);
            }
            assert!(
                error(&bytes).contains("65000 x 65000 pixels take more than"),
                "{format:?}: {}",
                error(&bytes)
            );
        }
    }

    #[test]
    fn what_is_no_image_says_so() {
        assert!(error(b"not an image").contains("no JPEG, PNG"));
        assert!(error(b"").contains("no JPEG, PNG"));
        assert!(error(b"\xFF\xD8\xFF\xD9").contains("cut off"));
    }
}
