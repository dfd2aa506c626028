//! Low-rank updates of the queries and values of the image tower, which is built anew from adapted weights for every batch: so
//! any model can be adapted whose layers are not.

use std::collections::HashMap;

use anyhow::Result;
use candle_core::{DType, Device, Tensor};
use candle_nn::{Init, VarBuilder, init};
use tpgm_candle::models::clip::{ClipImage, ClipLayout};
use tpgm_candle::nn::{cross_entropy, matmul};

use crate::lab::{Lab, Outcome, Trained, bytes_of, in_parts};
use crate::method::Setting;
use crate::net::{BLOCKS, WIDTH, config, unit};

pub(super) fn run(lab: &Lab<'_>, setting: &Setting) -> Result<Outcome> {
    let rank = setting.amount() as usize;
    let net =
        lab.net_with(Trained::Head, setting.seed, |params| params.head("lora.*").zero_anchor("lora.*"))?;
    let vb = net.params.var_builder().pp("lora");
    let mut updates = Vec::new();
    for block in 0..BLOCKS {
        for kind in ["q_proj", "v_proj"] {
            let name = format!("vision_model.encoder.layers.{block}.self_attn.{kind}.weight");
            let vb = vb.pp(format!("{block}.{kind}"));
            let a = vb.get_with_hints((rank, WIDTH), "a", init::DEFAULT_KAIMING_UNIFORM)?;
            let b = vb.get_with_hints((WIDTH, rank), "b", Init::Const(0.0))?;
            updates.push((name, b, a));
        }
    }
    let frozen: HashMap<_, _> = net.params.frozen().into_iter().collect();
    let forward = |images: &Tensor| {
        let mut weights = frozen.clone();
        for (name, b, a) in &updates {
            let Some(weight) = weights.get(name) else { candle_core::bail!("there is no {name}") };
            weights.insert(name.clone(), (weight + matmul(b, a)?)?);
        }
        let vb = VarBuilder::from_tensors(weights, DType::F32, &Device::Cpu);
        let tower =
            ClipImage::new(&config(), ClipLayout::HuggingFace, vb).map_err(candle_core::Error::wrap)?;
        net.classify(&unit(&tower.forward(images, true)?)?)
    };
    let mut spent = lab.train(&net.params, lab.course(setting), |optimizer, batch| {
        optimizer.backward_step(&cross_entropy(&forward(&batch.images)?, &batch.labels)?)?;
        Ok(())
    })?;
    spent.kept += updates.iter().map(|(_, b, a)| bytes_of(b) + bytes_of(a)).sum::<usize>();
    lab.judge(setting, spent, Vec::new(), |images| in_parts(images, forward))
}
