//! Prompts of the image tower, which is frozen, beside a trained head.

use anyhow::Result;
use candle_core::Tensor;
use tpgm_candle::DataOrder;
use tpgm_candle::nn::cross_entropy;
use tpgm_candle::nn::prompts::{
    Allocation, Placement, Ppo, PpoOptions, Relocation, Thompson, VisualPromptShape, VisualPrompts,
};

use crate::lab::{Lab, Net, Outcome, Trained, bytes_of, in_parts};
use crate::method::{Method, Setting};
use crate::net::{BLOCKS, PATCH, WIDTH, unit};

/// Prompts that move: two in front of every block at first.
const MOVED: usize = 2 * BLOCKS;

pub(super) fn run(lab: &Lab<'_>, setting: &Setting) -> Result<Outcome> {
    let net = lab.net(Trained::Head, setting.seed)?;
    let count = setting.amount() as usize;
    let placement = match setting.method {
        Method::PromptsShallow => Placement::Shallow(count),
        Method::PromptsDeep => Placement::Deep(count),
        _ => Placement::Placed((0..MOVED).map(|prompt| prompt % BLOCKS).collect()),
    };
    let is_moved = matches!(placement, Placement::Placed(_));
    let shape = VisualPromptShape { layers: BLOCKS, width: WIDTH, patch: PATCH };
    let mut prompts = VisualPrompts::zero_anchored(shape, placement, "", setting.seed, &net.params)?;
    let allocation = if setting.amount() > 0.0 {
        Allocation::Ppo(Box::new(Ppo::new(BLOCKS, PpoOptions::default(), setting.seed)?))
    } else {
        Allocation::Thompson(Thompson::new(BLOCKS)?)
    };
    let mut relocation = Relocation::new(allocation, setting.seed);
    let epoch = lab.world.train.len().div_ceil(lab.scale.batch) as u64;
    let mut log = Vec::new();
    let mut spent = lab.train(&net.params, lab.course(setting), |optimizer, batch| {
        if is_moved && batch.step % epoch == 0 {
            let moved = relocate(lab, &net, &mut relocation, &mut prompts)?;
            log.extend(moved.map(|moved| format!("epoch {}: {moved}", batch.step / epoch)));
        }
        let loss = cross_entropy(&logits(&net, &prompts, &batch.images)?, &batch.labels)?;
        optimizer.backward_step(&loss)?;
        Ok(())
    })?;
    spent.kept += bytes_of(prompts.prompts());
    if is_moved {
        log.push(format!("blocks at the end: {:?}", prompts.placement()));
    }
    lab.judge(setting, spent, log, |images| in_parts(images, |images| logits(&net, &prompts, images)))
}

fn logits(net: &Net, prompts: &VisualPrompts, images: &Tensor) -> candle_core::Result<Tensor> {
    let hook = |layer, hidden: Tensor| prompts.apply(layer, &hidden);
    net.classify(&unit(&net.pair.image.forward_with(images, true, hook)?)?)
}

/// A pass over the training images without a step; then perhaps a prompt moves.
fn relocate(
    lab: &Lab<'_>,
    net: &Net,
    relocation: &mut Relocation,
    prompts: &mut VisualPrompts,
) -> Result<Option<String>> {
    let train = &lab.world.train;
    let mut order = DataOrder::new(train.len(), lab.scale.batch, 0)?;
    while let Some(positions) = order.next_batch() {
        let batch = train.batch(positions, 0)?;
        let loss = cross_entropy(&logits(net, prompts, &batch.images)?, &batch.labels)?;
        relocation.add(prompts, f64::from(loss.to_scalar::<f32>()?), &loss.backward()?)?;
    }
    let moved = relocation.relocate(prompts)?;
    Ok(moved.map(|moved| {
        format!(
            "prompt {} from block {} to {} (score {:.2e})",
            moved.prompt, moved.from, moved.to, moved.score
        )
    }))
}
