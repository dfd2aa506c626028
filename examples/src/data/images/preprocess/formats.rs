//! The formats of the files: what their entries mean.

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::Preprocessing;
use super::entries::{Entries, Size, positive, side};

impl Entries<'_> {
    pub(super) fn hugging_face(&self) -> Result<Preprocessing> {
        let flag = |name: &str| match self.get(name) {
            None => Ok(None),
            Some(value) => {
                value.as_bool().map(Some).with_context(|| format!("`{name}` is neither true nor false"))
            }
        };
        ensure!(
            flag("do_resize")? != Some(false),
            "`do_resize` is false, but networks take images of one size"
        );
        let crops = flag("do_center_crop")?;
        let class = ["image_processor_type", "feature_extractor_type"];
        let class = class.iter().find_map(|name| self.get(name)?.as_str()).unwrap_or_default();
        let shorter =
            ["CLIP", "ChineseCLIP", "Bit", "ConvNext", "Levit", "MobileNet", "MobileViT", "PoolFormer"];
        let shorter = shorter.iter().any(|begin| class.starts_with(begin));
        let usual_share = class.starts_with("ConvNext").then_some(224.0 / 256.0);
        let share = self.share("crop_pct")?.or(usual_share);
        let crop = match self.size("crop_size")?.filter(|_| crops != Some(false)) {
            Some(Size::Square(side) | Size::Number(side)) => Some(side),
            Some(Size::Shorter(_)) => bail!("`crop_size` has `shortest_edge`: images would not be square"),
            None => None,
        };
        let scaled = |length: usize, share: f64| (length as f64 / share).floor() as usize;
        let mut found = Preprocessing { resample: self.resample("resample")?, ..Preprocessing::default() };
        match (self.size("size")?, crop) {
            (None, crop) => found.side = crop,
            (Some(Size::Number(length)), crop) if !shorter => {
                found.square(length, crop);
            }
            (Some(Size::Square(length)), crop) => found.square(length, crop),
            (Some(Size::Shorter(length) | Size::Number(length)), Some(crop)) => {
                found.shorter(scaled(length, share.unwrap_or(1.0)), crop);
            }
            // ConvNeXt: large images are not cut.
            (Some(Size::Shorter(length) | Size::Number(length)), None) => match share {
                Some(_) if length >= 384 => found.square(length, None),
                Some(share) => found.shorter(scaled(length, share), length),
                None => {
                    ensure!(
                        crops != Some(false),
                        "`size` has `shortest_edge` and `do_center_crop` is false: images would not be square"
                    );
                    found.shorter(length, length);
                }
            },
        }
        // What is said of values of 0 to 255 times a factor, for values of 0 to 1.
        let factor = match self.get("rescale_factor") {
            None => 1.0 / 255.0,
            Some(factor) => factor.as_f64().context("`rescale_factor` is no number")?,
        };
        let factor = if flag("do_rescale")? == Some(false) { 1.0 } else { factor };
        let to_unit = 255.0 * factor;
        ensure!(to_unit > 0.0 && to_unit.is_finite(), "`rescale_factor` is {factor}, not above 0");
        let offset = if flag("rescale_offset")? == Some(true) { 1.0 } else { 0.0 };
        let (mut mean, mut deviation) = (self.colors("image_mean")?, self.colors("image_std")?);
        if flag("do_normalize")? == Some(false) {
            (mean, deviation) = (Some([0.0; 3]), Some([1.0; 3]));
        }
        ensure!(
            (to_unit - 1.0).abs() < 1e-6 && offset == 0.0 || mean.is_some() && deviation.is_some(),
            "`rescale_factor` is unusual, but `image_mean` or `image_std` is missing"
        );
        found.mean = mean.map(|mean| mean.map(|mean| ((mean + offset) / to_unit) as f32));
        found.deviation = positive(deviation.map(|colors| colors.map(|color| color / to_unit)), "image_std")?;
        Ok(found)
    }

    pub(super) fn timm(&self) -> Result<Preprocessing> {
        let mut found = Preprocessing {
            resample: self.resample("interpolation")?,
            mean: self.colors("mean")?.map(|mean| mean.map(|mean| mean as f32)),
            deviation: positive(self.colors("std")?, "std")?,
            ..Preprocessing::default()
        };
        if let Some(size) = self.get("input_size") {
            let sides: Option<Vec<u64>> =
                size.as_array().and_then(|sides| sides.iter().map(Value::as_u64).collect());
            let [3, height, width] = sides.as_deref().unwrap_or_default() else {
                bail!("`input_size` is {size}, not of three colors, a height and a width")
            };
            ensure!(height == width, "`input_size` is {size}: only square images are supported");
            let side = side("input_size", *height)?;
            // timm's own default.
            let share = self.share("crop_pct")?.unwrap_or(0.875);
            let length = (side as f64 / share).floor() as usize;
            match self.text("crop_mode")?.as_deref() {
                None | Some("center") => found.shorter(length, side),
                Some("squash") => found.square(length, Some(side)),
                Some(other) => bail!("`crop_mode` is `{other}`: only `center` and `squash` are supported"),
            }
        }
        Ok(found)
    }

    pub(super) fn open_clip(&self) -> Result<Preprocessing> {
        let mut found = Preprocessing {
            resample: self.resample("interpolation")?,
            mean: self.colors("mean")?.map(|mean| mean.map(|mean| mean as f32)),
            deviation: positive(self.colors("std")?, "std")?,
            ..Preprocessing::default()
        };
        let squash = match self.text("resize_mode")?.as_deref() {
            None | Some("shortest") => false,
            Some("squash") => true,
            Some(other) => bail!("`resize_mode` is `{other}`: only `shortest` and `squash` are supported"),
        };
        match self.size("size")? {
            None => found.squash = squash.then_some(true),
            Some(Size::Number(side) | Size::Square(side) | Size::Shorter(side)) if squash => {
                found.square(side, None)
            }
            Some(Size::Number(side) | Size::Square(side) | Size::Shorter(side)) => found.shorter(side, side),
        }
        Ok(found)
    }
}

impl Preprocessing {
    fn square(&mut self, length: usize, crop: Option<usize>) {
        (self.resize, self.side, self.squash) = (Some(length), Some(crop.unwrap_or(length)), Some(true));
    }

    fn shorter(&mut self, length: usize, side: usize) {
        (self.resize, self.side, self.squash) = (Some(length), Some(side), Some(false));
    }
}
