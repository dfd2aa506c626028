//! Between the weights before and after fine-tuning.

use anyhow::Result;
use candle_core::{Device, Tensor};
use tpgm_candle::core::weight_space::BetaMixture;
use tpgm_candle::weight_space::{Dawin, Interpolation};

use crate::lab::{Lab, Net, Outcome, Spent, bytes_of_all, in_parts};
use crate::method::Setting;

/// One share for all images.
pub(super) fn wise(lab: &Lab<'_>, setting: &Setting, net: &Net, spent: Spent) -> Result<Outcome> {
    let mut between = Interpolation::new(&net.params)?;
    between.set(setting.amount())?;
    let outcome =
        lab.judge(setting, spent, Vec::new(), |images| in_parts(images, |images| net.logits(images)))?;
    between.restore()?;
    Ok(outcome)
}

/// A share for each image, or each cluster of images; there are no labels in it.
pub(super) fn dawin(lab: &Lab<'_>, setting: &Setting, net: &Net, mut spent: Spent) -> Result<Outcome> {
    // The fine-tuned weights while others are in the model.
    spent.kept += bytes_of_all(&net.params);
    let clusters = setting.amount() as usize;
    let clusters = (clusters > 0).then(|| BetaMixture { components: clusters, ..BetaMixture::default() });
    let dawin = Dawin { clusters, ..Dawin::default() };
    lab.judge(setting, spent, Vec::new(), |images| {
        let forward = |images: &Tensor| in_parts(images, |images| net.logits(images));
        let fine_tuned = forward(images)?;
        let mut between = Interpolation::new(&net.params)?;
        between.set(0.0)?;
        let zero_shot = forward(images)?;
        between.restore()?;
        let found = dawin.evaluate(&net.params, &zero_shot, &fine_tuned, |samples| {
            let samples: Vec<_> = samples.iter().map(|sample| *sample as u32).collect();
            let count = samples.len();
            net.logits(&images.index_select(&Tensor::from_vec(samples, count, &Device::Cpu)?, 0)?)
        })?;
        Ok(found.outputs)
    })
}
