//! Entries of a file, of the types that they usually have.

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde_json::{Map, Value};

use super::Resample;

/// The entries of a file.
pub(super) struct Entries<'a>(pub(super) &'a Map<String, Value>);

/// The size of an image.
#[derive(Clone, Copy)]
pub(super) enum Size {
    /// Both sides.
    Square(usize),
    /// The shorter one.
    Shorter(usize),
    /// Both or the shorter one: a number, which some classes of Hugging Face take for the one and some for the other.
    Number(usize),
}

/// Sides in pixels that make sense.
const SIDES: std::ops::RangeInclusive<u64> = 1..=16_384;

impl Entries<'_> {
    /// An entry that is not null.
    pub(super) fn get(&self, name: &str) -> Option<&Value> {
        self.0.get(name).filter(|value| !value.is_null())
    }

    pub(super) fn text(&self, name: &str) -> Result<Option<String>> {
        let text =
            |value: &Value| value.as_str().map(str::to_owned).with_context(|| format!("`{name}` is no text"));
        self.get(name).map(text).transpose()
    }

    /// A share of a side.
    pub(super) fn share(&self, name: &str) -> Result<Option<f64>> {
        let Some(value) = self.get(name) else { return Ok(None) };
        let share = value.as_f64().filter(|share| *share > 0.01 && *share <= 1.0);
        share.map(Some).with_context(|| format!("`{name}` is {value}, not between 0.01 and 1"))
    }

    /// A number for each color, or one for all.
    pub(super) fn colors(&self, name: &str) -> Result<Option<[f64; 3]>> {
        let Some(value) = self.get(name) else { return Ok(None) };
        let numbers: Option<Vec<f64>> = match value {
            Value::Array(colors) => colors.iter().map(Value::as_f64).collect(),
            one => one.as_f64().map(|one| vec![one]),
        };
        match numbers.as_deref() {
            Some([one]) => Ok(Some([*one; 3])),
            Some([red, green, blue]) => Ok(Some([*red, *green, *blue])),
            _ => bail!("`{name}` is {value}, not a number for each of three colors"),
        }
    }

    pub(super) fn size(&self, name: &str) -> Result<Option<Size>> {
        let Some(value) = self.get(name) else { return Ok(None) };
        let unknown = || {
            anyhow!(
                "`{name}` is {value}: expected a number, `height` and `width`, or `shortest_edge`, in whole pixels"
            )
        };
        let number = |value: &Value| side(name, value.as_u64().ok_or_else(unknown)?);
        let square = |height: &Value, width: &Value| {
            let (height, width) = (number(height)?, number(width)?);
            ensure!(height == width, "`{name}` is {value}: only square images are supported");
            Ok(Size::Square(height))
        };
        let size = match value {
            Value::Array(sides) if sides.len() == 2 => square(&sides[0], &sides[1])?,
            Value::Object(entries) => {
                match (entries.get("height"), entries.get("width"), entries.get("shortest_edge")) {
                    (Some(height), Some(width), None) => square(height, width)?,
                    // With `longest_edge` it may get smaller than asked for.
                    (None, None, Some(shorter)) if entries.len() == 1 => Size::Shorter(number(shorter)?),
                    _ => return Err(unknown()),
                }
            }
            other => Size::Number(number(other)?),
        };
        Ok(Some(size))
    }

    pub(super) fn resample(&self, name: &str) -> Result<Option<Resample>> {
        let Some(value) = self.get(name) else { return Ok(None) };
        let text = value.as_str().map(|text| text.rsplit('.').next().unwrap_or_default().to_lowercase());
        // PIL's numbers.
        Ok(Some(match (value.as_u64(), text.as_deref()) {
            (Some(0), _) | (_, Some("nearest")) => Resample::Nearest,
            (Some(1), _) | (_, Some("lanczos")) => Resample::Lanczos,
            (Some(2), _) | (_, Some("bilinear")) => Resample::Bilinear,
            (Some(3), _) | (_, Some("bicubic")) => Resample::Bicubic,
            _ => bail!(
                "`{name}` is {value}: only nearest (0), lanczos (1), bilinear (2) and bicubic (3) are supported"
            ),
        }))
    }
}

pub(super) fn side(name: &str, pixels: u64) -> Result<usize> {
    ensure!(
        SIDES.contains(&pixels),
        "`{name}` has {pixels} pixels, not {} to {}",
        SIDES.start(),
        SIDES.end()
    );
    Ok(pixels as usize)
}

pub(super) fn positive(colors: Option<[f64; 3]>, name: &str) -> Result<Option<[f32; 3]>> {
    let Some(colors) = colors else { return Ok(None) };
    ensure!(
        colors.iter().all(|color| *color > 0.0 && color.is_finite()),
        "`{name}` is {colors:?}, not above 0"
    );
    Ok(Some(colors.map(|color| color as f32)))
}
