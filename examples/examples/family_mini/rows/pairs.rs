//! Methods that train both towers on pairs of images and texts, and tell classes by their texts.
//!
//! A batch has several images of one class, so pairs with the same text belong together in every contrastive loss here.

use anyhow::Result;
use candle_core::{DType, Tensor};
use tpgm_candle::nn::losses::{
    Contrastive, Divergence, contrastive, cross_entropy_soft, cross_norm, distillation, mixed_probabilities,
    nearest, orthogonality, same_text_targets, zero_shot_head,
};
use tpgm_candle::nn::random::SplitMix64;
use tpgm_candle::nn::{cross_entropy_smoothed, matmul_transposed, softmax_last_dim};
use tpgm_candle::teacher::{Momentum, Teacher};
use tpgm_candle::{Pull, PullWeights};

use crate::lab::{Lab, Net, Outcome, Spent, Trained, bytes, bytes_of, bytes_of_all, in_parts};
use crate::method::{Method, Setting};
use crate::world::Batch;

/// CaRot's weights of orthogonality and of the cross norm, as published.
const ORTHOGONALITY: f64 = 0.2;
const CROSS_NORM: f64 = 0.05;
/// Pairs that ARF retrieves for each training image, of which a step takes one; ours.
const RETRIEVED: usize = 4;
/// DRM's share of the head of names, as published.
const NAMES: f64 = 0.5;
/// GIFT's smoothing of labels, temperature and weight of matching, as published.
const SMOOTHING: f64 = 0.2;
const TEMPERATURE: f64 = 2.0;
const MATCHING: f64 = 0.25;

/// Images against texts, pair by pair.
fn compared(net: &Net, images: &Tensor, texts: &Tensor) -> candle_core::Result<Contrastive> {
    contrastive(&net.pair.images(images)?, texts, &net.pair.scale()?, 0.0)
}

/// A batch against texts of its classes, of which there is one each.
fn of_classes(net: &Net, batch: &Batch, texts: &Tensor) -> candle_core::Result<Contrastive> {
    compared(net, &batch.images, &net.pair.texts(texts)?.index_select(&batch.labels, 0)?)
}

/// The contrastive loss where equal numbers are equal texts.
fn loss_of(pairs: &Contrastive, texts: &Tensor) -> candle_core::Result<Tensor> {
    pairs.against(&same_text_targets(texts, DType::F32, 0.0)?)
}

/// A teacher's logits as soft targets, both directions.
fn both_ways(student: &Tensor, teacher: &Tensor, temperature: f64) -> candle_core::Result<Tensor> {
    let turned = |x: &Tensor| x.t()?.contiguous();
    let one = distillation(student, teacher, temperature, Divergence::CrossEntropy)?;
    one + distillation(&turned(student)?, &turned(teacher)?, temperature, Divergence::CrossEntropy)?
}

/// Predicts by the texts that the tuned text tower reads.
fn judge(lab: &Lab<'_>, setting: &Setting, net: &Net, spent: Spent) -> Result<Outcome> {
    let head = net.text_head(&lab.world.templates, lab.world.classes())?;
    lab.judge(setting, spent, Vec::new(), |images| {
        in_parts(images, |images| matmul_transposed(&net.pair.images(images)?, &head))
    })
}

pub(super) fn flyp(lab: &Lab<'_>, setting: &Setting) -> Result<Outcome> {
    let net = lab.net(Trained::Pair, setting.seed)?;
    let spent = lab.train(&net.params, lab.course(setting), |optimizer, batch| {
        let pairs = of_classes(&net, batch, &lab.world.names)?;
        optimizer.backward_step(&loss_of(&pairs, &batch.labels)?)?;
        Ok(())
    })?;
    judge(lab, setting, &net, spent)
}

pub(super) fn carot(lab: &Lab<'_>, setting: &Setting) -> Result<Outcome> {
    let net = lab.net(Trained::PairAndScale, setting.seed)?;
    let course = lab.course(setting);
    let mut teacher =
        Teacher::average(&net.params, Momentum::carot(course.steps), (course.steps / 20).max(1))?;
    let [image, text] = &net.pair.projections;
    let mut spent = lab.train(&net.params, course, |optimizer, batch| {
        let pairs = of_classes(&net, batch, &lab.world.names)?;
        let penalties =
            ((orthogonality(image)? * ORTHOGONALITY)? + (cross_norm(image, text)? * CROSS_NORM)?)?;
        let mut loss = (loss_of(&pairs, &batch.labels)? + penalties)?;
        if batch.step > 0 {
            let wanted = teacher.with(|| Ok(of_classes(&net, batch, &lab.world.names)?.logits))?;
            loss = (loss + (both_ways(&pairs.logits, &wanted, 1.0)? * setting.amount())?)?;
        }
        optimizer.backward_step(&loss)?;
        teacher.update()?;
        Ok(())
    })?;
    spent.kept += bytes(&teacher.state()?) + bytes_of_all(&net.params);
    judge(lab, setting, &net, spent)
}

/// Captions are descriptions of the classes; pairs are retrieved by the pre-trained image tower. Weights are ours.
pub(super) fn arf(lab: &Lab<'_>, setting: &Setting) -> Result<Outcome> {
    let net = lab.net(Trained::Pair, setting.seed)?;
    let begun = std::time::Instant::now();
    let features = |images: &Tensor| in_parts(images, |images| net.pair.images(images));
    let pool = &lab.world.pool;
    let count = RETRIEVED.min(pool.numbers.elem_count());
    let found = nearest(&features(&lab.world.train.images)?, &features(&pool.images)?, count)?.rows;
    let found = found.to_vec2::<u32>()?;
    let before = begun.elapsed().as_secs_f64();
    let mut random = SplitMix64::named(setting.seed, "retrieved pairs");
    let mut spent = lab.train(&net.params, lab.course(setting), |optimizer, batch| {
        let one = |position: u32| found[position as usize][random.below(count as u64) as usize];
        let rows: Vec<u32> = batch.positions.to_vec1::<u32>()?.into_iter().map(one).collect();
        let rows = Tensor::from_vec(rows, batch.positions.elem_count(), batch.positions.device())?;
        let of_pool = |x: &Tensor| x.index_select(&rows, 0);
        let texts = net.pair.texts(&of_pool(&pool.texts)?)?;
        let others = loss_of(&compared(&net, &of_pool(&pool.images)?, &texts)?, &of_pool(&pool.numbers)?)?;
        let names = loss_of(&of_classes(&net, batch, &lab.world.names)?, &batch.labels)?;
        let captions = loss_of(&of_classes(&net, batch, &lab.world.descriptions)?, &batch.labels)?;
        optimizer.backward_step(&((names + captions)? + (others * setting.amount())?)?)?;
        Ok(())
    })?;
    spent.seconds += before;
    spent.kept += bytes_of(&pool.images);
    judge(lab, setting, &net, spent)
}

/// Our reading of its training: the soft targets are the pre-trained pair's affinities of each training image to the descriptions,
/// from each of which its mean over the images is taken off, so that no description is liked by all.
pub(super) fn drm(lab: &Lab<'_>, setting: &Setting) -> Result<Outcome> {
    let net = lab.net(Trained::Pair, setting.seed)?;
    let begun = std::time::Instant::now();
    let (world, scale) = (lab.world, net.pair.scale()?);
    let described = |images: &Tensor| {
        matmul_transposed(images, &net.pair.texts(&world.descriptions)?)?.broadcast_mul(&scale)
    };
    let affinities = described(&in_parts(&world.train.images, |images| net.pair.images(images))?)?.detach();
    let affinities = affinities.broadcast_sub(&affinities.mean_keepdim(0)?)?;
    let targets = softmax_last_dim(&affinities)?;
    let before = begun.elapsed().as_secs_f64();
    let mut spent = lab.train(&net.params, lab.course(setting), |optimizer, batch| {
        let seen = net.pair.images(&batch.images)?;
        let texts = net.pair.texts(&world.names)?.index_select(&batch.labels, 0)?;
        let names = loss_of(&contrastive(&seen, &texts, &scale, 0.0)?, &batch.labels)?;
        let concepts = cross_entropy_soft(&described(&seen)?, &targets.index_select(&batch.positions, 0)?)?;
        optimizer.backward_step(&(names + (concepts * setting.amount())?)?)?;
        Ok(())
    })?;
    spent.seconds += before;
    spent.kept += bytes_of(&targets);
    let names = net.text_head(&world.templates, world.classes())?;
    let concepts = zero_shot_head(&net.pair.texts(&world.descriptions)?.detach(), &scale)?;
    lab.judge(setting, spent, Vec::new(), |images| {
        in_parts(images, |images| mixed_probabilities(&net.pair.images(images)?, &names, &concepts, NAMES))
    })
}

/// The task at hand beside what the pre-trained pair says of other pairs. With the pull, weights that matter for the latter are
/// held.
pub(super) fn gift(lab: &Lab<'_>, setting: &Setting) -> Result<Outcome> {
    let net = lab.net(Trained::Pair, setting.seed)?;
    let mut course = lab.course(setting);
    let is_pulled = setting.method == Method::Gift;
    if is_pulled {
        // The published sum has no half.
        let anchor_l2 = 2.0 * setting.amount();
        course.constraint = Pull { anchor_l2, weights: PullWeights::Fisher, ..Pull::default() }.into();
    }
    let mut teacher = Teacher::frozen(&net.params)?;
    let mut random = SplitMix64::named(setting.seed, "pairs of GIFT");
    let pool = &lab.world.pool;
    let mut spent = lab.train(&net.params, course, |optimizer, batch| {
        let pairs = batch.labels.elem_count().min(pool.numbers.elem_count());
        let rows = (0..pairs).map(|_| random.below(pool.numbers.elem_count() as u64) as u32).collect();
        let rows = Tensor::from_vec(rows, pairs, batch.labels.device())?;
        let (images, texts) = (pool.images.index_select(&rows, 0)?, pool.texts.index_select(&rows, 0)?);
        let targets = same_text_targets(&pool.numbers.index_select(&rows, 0)?, DType::F32, SMOOTHING)?;
        let wanted = teacher.with(|| Ok(compared(&net, &images, &net.pair.texts(&texts)?)?.logits))?;
        let others = compared(&net, &images, &net.pair.texts(&texts)?)?;
        let matched = (others.against(&targets)? * (2.0 * MATCHING))?;
        let kept = (both_ways(&others.logits, &wanted, TEMPERATURE)? + matched)?;
        if is_pulled {
            optimizer.backward_importance(&kept)?;
        }
        let names = net.pair.texts(&lab.world.names)?;
        let logits = matmul_transposed(&net.pair.images(&batch.images)?, &names)?;
        let logits = logits.broadcast_mul(&net.pair.scale()?)?;
        optimizer.backward_step(&(cross_entropy_smoothed(&logits, &batch.labels, SMOOTHING)? + kept)?)?;
        Ok(())
    })?;
    spent.kept += bytes_of(&pool.images) + bytes_of_all(&net.params);
    judge(lab, setting, &net, spent)
}
