//! Adapting layers over the frozen image tower and a small network from scratch: our reading of LEVI.

use anyhow::Result;
use candle_core::Tensor;
use tpgm_candle::models::clip::{ClipImage, ClipImageConfig, ClipLayout, ClipVitConfig};
use tpgm_candle::models::{LayerEnsemble, Shares};
use tpgm_candle::nn::cross_entropy;

use crate::lab::{Lab, Outcome, Trained, bytes_of_all, in_parts};
use crate::method::Setting;
use crate::net::{BLOCKS, WIDTH, config};
use crate::pretrain::initialize;

/// Width of the small network.
const SMALL: usize = 32;

pub(super) fn run(lab: &Lab<'_>, setting: &Setting) -> Result<Outcome> {
    let net = lab.net_with(Trained::Head, setting.seed, |params| {
        params.head("small.*").head("ensemble.*").freeze("classifier.weight")
    })?;
    let vb = net.params.var_builder();
    let mut small = config();
    small.projection_dim = SMALL;
    if let ClipImageConfig::Vit(vit) = &small.image {
        let sizes = ClipVitConfig { hidden_size: SMALL, intermediate_size: 2 * SMALL, ..vit.clone() };
        small.image = ClipImageConfig::Vit(ClipVitConfig { num_hidden_layers: 2, ..sizes });
    }
    let small = ClipImage::new(&small, ClipLayout::HuggingFace, vb.pp("small"))?;
    initialize(&net.params, setting.seed)?;
    let shares = if setting.amount() > 0.0 { Shares::Learned } else { Shares::Uniform };
    let ensemble =
        LayerEnsemble::new(&[WIDTH; BLOCKS], SMALL, lab.world.classes(), shares, vb.pp("ensemble"))?;

    // The class token behind every block of the large network.
    let taps = |images: &Tensor| {
        let mut taps = Vec::new();
        net.pair.image.forward_with(images, false, |layer, hidden| {
            if layer > 0 {
                taps.push(hidden.narrow(1, 0, 1)?.squeeze(1)?);
            }
            Ok(hidden)
        })?;
        Ok::<_, candle_core::Error>(taps)
    };
    let forward = |images: &Tensor| ensemble.forward(&taps(images)?, &small.forward(images, true)?);
    let mut spent = lab.train(&net.params, lab.course(setting), |optimizer, batch| {
        optimizer.backward_step(&cross_entropy(&forward(&batch.images)?, &batch.labels)?)?;
        Ok(())
    })?;
    spent.kept += bytes_of_all(&net.params);
    lab.judge(setting, spent, Vec::new(), |images| in_parts(images, forward))
}
