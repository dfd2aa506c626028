//! Losses, and the pulls that two methods add to them.

use candle_core::{D, DType, Device, Module, Result, Tensor, Var};
use candle_nn::ops::sigmoid;
use serde_json::Value;
use tpgm_candle::core::{Pull, PullScale, PullWeights};
use tpgm_candle::nn::losses::{
    Bayer, Divergence, Translation, bilinear, contrastive, cross_entropy_soft, cross_norm, distillation,
    energy_gap, entropy, entropy_of_mistakes, multi_margin, one_hot, orthogonality, periodic_consistency,
    same_text_targets,
};
use tpgm_candle::nn::{self, Conv2d, cross_entropy_smoothed};

use crate::case::{Case, Outputs, numbers};
use crate::pulls::{Importance, Pulled, pulls};

pub(crate) fn named<const N: usize>(outputs: [(&str, Tensor); N]) -> Outputs {
    outputs.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

/// Rows divided by their lengths.
pub(crate) fn unit(x: &Tensor) -> Result<Tensor> {
    x.broadcast_div(&x.sqr()?.sum_keepdim(D::Minus1)?.sqrt()?)
}

pub(crate) fn carot(case: &Case) -> Result<Outputs> {
    let smoothing = case.number("/label_smoothing")?;
    let pairs = contrastive(&case.input("image")?, &case.input("text")?, &case.input("scale")?, smoothing)?;
    let mut total = pairs.loss.clone();
    let mut outputs = named([("contrastive", pairs.loss.clone())]);
    let strength = |term: &str| case.number(&format!("/coefficients/{term}"));
    if strength("cross_norm")? > 0.0 {
        let norm = cross_norm(&case.input("visual_projection")?, &case.input("text_projection")?)?;
        total = (total + norm * strength("cross_norm")?)?;
    }
    if strength("orthogonality")? > 0.0 {
        total = (total + orthogonality(&case.input("visual_projection")?)? * strength("orthogonality")?)?;
    }
    if strength("self_distillation")? > 0.0 && case.number("/step")? >= 1.0 {
        let (image, text) = (case.input("teacher_image")?, case.input("teacher_text")?);
        let teacher = contrastive(&image, &text, &case.input("teacher_scale")?, 0.0)?.logits;
        let along = |a: &Tensor, b: &Tensor| distillation(a, b, 1.0, Divergence::CrossEntropy);
        let other = along(&pairs.logits.t()?, &teacher.t()?)?;
        let term = (along(&pairs.logits, &teacher)? + other)?;
        total = (total + (&term * strength("self_distillation")?)?)?;
        outputs.extend(named([("self_distillation", term)]));
    }
    outputs.extend(named([("total", total)]));
    Ok(outputs)
}

pub(crate) fn lipsum(case: &Case) -> Result<Outputs> {
    let features =
        |pooled: &str, projection: &str| unit(&case.input(pooled)?.matmul(&case.input(projection)?)?);
    let image = features("pooled", "projection")?;
    let anchor = features("pooled_anchor", "projection_anchor")?;
    let text = features("text_pooled", "text_projection")?;
    let scale = numbers(&case.input("logit_scale")?)?[0].exp();
    let logits = (image.matmul(&case.input("head")?)? * scale)?;
    let classes = cross_entropy_smoothed(&logits, &case.input("labels")?, case.number("/label_smoothing")?)?;
    let gap = energy_gap(&image, &anchor, &text, scale)?;
    let total = (&classes + (&gap * case.number("/strength")?)?)?;
    Ok(named([("cross_entropy", classes), ("regularizer", gap), ("total", total)]))
}

pub(crate) fn cross_entropy(case: &Case) -> Result<Outputs> {
    let (logits, labels, others) =
        (case.input("logits")?, case.input("labels")?, case.input("other_labels")?);
    let share = case.number("/mixup_lambda")?;
    let smoothed = cross_entropy_smoothed(&logits, &labels, case.number("/label_smoothing")?)?;
    // Mixed labels are soft targets.
    let one_hot = |labels: &Tensor| one_hot(labels, logits.dim(1)?, logits.dtype());
    let targets = ((one_hot(&labels)? * share)? + (one_hot(&others)? * (1.0 - share))?)?;
    Ok(named([("smoothed", smoothed), ("mixup", cross_entropy_soft(&logits, &targets)?)]))
}

/// Every term alone, and their weighted total. The four norms are one pull of the whole set: their gradients come from a step.
pub(crate) fn autoft(case: &Case) -> Result<Outputs> {
    let (logits, labels) = (case.input("logits")?, case.input("labels")?);
    let terms: Vec<String> = case.settings["terms"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|x| Some(x.as_str()?.to_owned()))
        .collect();
    let weights = case.input("loss_weights")?;
    let weights = if weights.rank() == 2 { weights.mean(0)? } else { weights };
    let weights = numbers(&weights)?;
    let mut outputs = Outputs::new();
    let mut total = Tensor::zeros((), logits.dtype(), &Device::Cpu)?;
    let mut pull = Pull { scale: PullScale::SetMean, ..Pull::default() };
    for (term, &weight) in terms.iter().zip(&weights) {
        let mut alone = Pull { scale: PullScale::SetMean, ..Pull::default() };
        let value = match term.as_str() {
            "ce" => nn::cross_entropy(&logits, &labels)?,
            "dcm" => entropy_of_mistakes(&logits, &labels)?,
            "entropy" => entropy(&logits)?,
            "hinge" => multi_margin(&logits, &labels, 1.0)?,
            "flyp" => {
                contrastive(&case.input("image")?, &case.input("text")?, &case.input("scale")?, 0.0)?.loss
            }
            norm => {
                // Squares have no half there.
                match norm {
                    "l1init" => (alone.anchor_l1, pull.anchor_l1) = (1.0, weight),
                    "l1zero" => (alone.zero_l1, pull.zero_l1) = (1.0, weight),
                    "l2init" => (alone.anchor_l2, pull.anchor_l2) = (2.0, 2.0 * weight),
                    "l2zero" => (alone.zero_l2, pull.zero_l2) = (2.0, 2.0 * weight),
                    other => candle_core::bail!("the term `{other}` is not known here"),
                }
                let value = penalty(case, &alone)?;
                for (name, gradient) in gradients(case, &alone)? {
                    outputs.push((format!("grad/{norm}/weight/{name}"), gradient));
                }
                value
            }
        };
        total = (total + (&value * weight)?)?;
        outputs.push((term.clone(), value));
    }
    for (name, gradient) in gradients(case, &pull)? {
        outputs.push((format!("grad/total/weight/{name}"), gradient));
    }
    outputs.push(("total".into(), total));
    Ok(outputs)
}

fn gradients(case: &Case, pull: &Pull) -> Result<Vec<(String, Tensor)>> {
    let parameter = |name: String| {
        Ok(Pulled {
            weight: case.input(&format!("weight/{name}"))?.detach(),
            anchor: Some(case.input(&format!("anchor/{name}"))?),
            constraint: (*pull).into(),
            importance: None,
            name,
        })
    };
    let parameters = case.names("weight").into_iter().map(parameter).collect::<Result<Vec<_>>>()?;
    let pulls = pulls(&parameters)?;
    Ok(parameters.into_iter().zip(pulls).map(|(parameter, (pull, _))| (parameter.name, pull)).collect())
}

/// The value of a mean over all parameters, by its formula.
fn penalty(case: &Case, pull: &Pull) -> Result<Tensor> {
    let (mut sum, mut count) = (0.0, 0);
    for name in case.names("weight") {
        let weights = case.numbers(&format!("weight/{name}"))?;
        let anchors = case.numbers(&format!("anchor/{name}"))?;
        for (w, a) in weights.iter().zip(&anchors) {
            let d = w - a;
            sum += pull.anchor_l1 * d.abs() + pull.zero_l1 * w.abs();
            sum += (pull.anchor_l2 * d * d + pull.zero_l2 * w * w) / 2.0;
        }
        count += weights.len();
    }
    Tensor::new(sum / count as f64, &Device::Cpu)?.to_dtype(case.dtype())
}

/// Two linear towers.
struct Towers {
    image: Var,
    text: Var,
    logit_scale: Var,
}

impl Towers {
    fn of(case: &Case, which: &str) -> Result<Self> {
        let var = |name: &str| Var::from_tensor(&case.input(&format!("{which}/{name}"))?);
        Ok(Self { image: var("image")?, text: var("text")?, logit_scale: var("logit_scale")? })
    }

    fn features(&self, case: &Case, images: &str, texts: &Tensor) -> Result<(Tensor, Tensor)> {
        let image = unit(&case.input(images)?.matmul(&self.image.t()?)?)?;
        Ok((image, unit(&texts.matmul(&self.text.t()?)?)?))
    }

    fn named(&self) -> [(&'static str, &Var); 3] {
        [("image", &self.image), ("text", &self.text), ("logit_scale", &self.logit_scale)]
    }
}

/// One step: the task, what is learned from pairs, the importance by its gradient, and what the optimizer sees of all.
pub(crate) fn gift(case: &Case) -> Result<Outputs> {
    let (model, previous) = (Towers::of(case, "weight")?, Towers::of(case, "previous")?);
    let smoothing = case.number("/label_smoothing")?;
    let (image, classes) = model.features(case, "images", &case.input("class_texts")?)?;
    let logits = image.matmul(&classes.t()?)?.broadcast_mul(&model.logit_scale.exp()?)?;
    let task = cross_entropy_smoothed(&logits, &case.input("labels")?, smoothing)?;

    let which = case.input("pair_labels")?;
    let texts = case.input("pair_texts")?.index_select(&which, 0)?;
    let (mut image, mut text) = model.features(case, "pair_images", &texts)?;
    let (old_image, old_text) = previous.features(case, "pair_images", &texts)?;
    let (old_image, old_text) = (old_image.detach(), old_text.detach());
    let teacher = contrastive(&old_image, &old_text, &previous.logit_scale.exp()?.detach(), 0.0)?.logits;
    // The other tower is the teacher's then.
    if case.flag("image_only") {
        text = old_text;
    } else if case.flag("text_only") {
        image = old_image;
    }
    let pairs = contrastive(&image, &text, &model.logit_scale.exp()?, 0.0)?;
    let temperature = case.number("/temperature")?;
    let divergence = if case.flag("reverse_kl") { Divergence::ReverseKl } else { Divergence::CrossEntropy };
    let targets = same_text_targets(&which, image.dtype(), smoothing)?;
    let one = |turned: bool| -> Result<(Tensor, Tensor)> {
        let turn = |x: &Tensor| if turned { x.t()?.contiguous() } else { Ok(x.clone()) };
        let (l, t) = (turn(&pairs.logits)?, turn(&teacher)?);
        Ok((distillation(&l, &t, temperature, divergence)?, cross_entropy_soft(&l, &targets)?))
    };
    let ((distilled, matched), (other_distilled, other_matched)) = (one(false)?, one(true)?);
    let distilled = ((distilled + other_distilled)? * case.number("/distillation")?)?;
    let matched = ((matched + other_matched)? * case.number("/matching")?)?;
    let from_pairs = (&distilled + &matched)?;
    let of_pairs = from_pairs.backward()?;
    let of_task = task.backward()?;

    let fisher = case.flag("fisher");
    let t = case.number("/iteration")?;
    let weights = match (fisher, case.flag("running_fisher") && t > 0.0) {
        (false, _) => PullWeights::One,
        (true, false) => PullWeights::Fisher,
        (true, true) => PullWeights::Running { decay: t / (t + 1.0) },
    };
    let pull = Pull { anchor_l2: 2.0 * case.number("/pull")?, weights, ..Pull::default() };
    let mut parameters = Vec::new();
    for (name, var) in model.named() {
        let zeros = var.zeros_like()?;
        let gradient = of_pairs.get(var).unwrap_or(&zeros);
        // 1e-6 for the scale, and for what the pairs do not reach.
        let reached = name != "logit_scale" && of_pairs.get(var).is_some();
        let before = case.numbers(&format!("fisher_before/{name}")).ok();
        let importance = match (weights, reached) {
            (PullWeights::One, _) => None,
            (_, true) => Some(Importance::Of { gradient: gradient.detach(), before }),
            (PullWeights::Running { decay }, false) => {
                let of = |f: f64| decay * f + (1.0 - decay) * 1e-6;
                Some(Importance::Given(before.unwrap_or_default().into_iter().map(of).collect()))
            }
            (_, false) => Some(Importance::Given(vec![1e-6; var.elem_count()])),
        };
        parameters.push(Pulled {
            name: name.to_owned(),
            weight: var.as_tensor().detach(),
            anchor: Some(case.input(&format!("previous/{name}"))?),
            constraint: pull.into(),
            importance,
        });
    }
    let mut outputs = named([("cross_entropy", task)]);
    let mut value = 0.0;
    for ((parameter, (pulled, importance)), (name, var)) in
        parameters.iter().zip(pulls(&parameters)?).zip(model.named())
    {
        let (weight, anchor) = (numbers(var)?, case.numbers(&format!("previous/{name}"))?);
        let ones = vec![1.0; weight.len()];
        let f = importance.as_deref().unwrap_or(&ones);
        let squares = weight.iter().zip(&anchor).zip(f).map(|((w, a), f)| f * (w - a) * (w - a));
        value += squares.sum::<f64>() * case.number("/pull")?;
        if let Some(importance) = &importance {
            outputs.push((format!("fisher/{name}"), case.tensor(importance, &parameter.weight)?));
        }
        let mut gradient = pulled;
        for grads in [&of_task, &of_pairs] {
            if let Some(grad) = grads.get(var) {
                gradient = (gradient + grad)?;
            }
        }
        outputs.push((format!("gradient/{name}"), gradient));
    }
    let pull = Tensor::new(value, &Device::Cpu)?.to_dtype(case.dtype())?;
    // What has no strength is not there.
    for (name, term) in [("distillation", distilled), ("matching", matched), ("pull", pull)] {
        if case.tensors.contains_key(&format!("output/{name}")) {
            outputs.push((name.into(), term));
        }
    }
    Ok(outputs)
}

/// A layer with a sigmoid.
pub(crate) fn demosaicking(case: &Case) -> Result<Outputs> {
    let (weight, bias) = (case.input("weight")?, case.input("bias")?);
    let network = |x: &Tensor| {
        let y = Conv2d::new(weight.clone()).padding(1).forward(x)?;
        sigmoid(&y.broadcast_add(&bias.reshape((1, (), 1, 1))?)?)
    };
    let pattern = |name: &Value| match name.as_str() {
        Some("BGGR") => Ok(Bayer::Bggr),
        Some("GBRG") => Ok(Bayer::Gbrg),
        Some("GRBG") => Ok(Bayer::Grbg),
        _ => candle_core::bail!("the pattern {name} is not known here"),
    };
    let patterns = case.settings["patterns"].as_array().into_iter().flatten();
    let patterns = patterns.map(pattern).collect::<Result<Vec<_>>>()?;
    let (input, raw) = (case.input("input")?, case.input("raw")?);
    let found = periodic_consistency(network, &input, &raw, &patterns, Translation::Published)?;
    // The published code numbers its predictions by pattern, the raw image's own being the first; a file may number them in turn.
    let by_pattern = patterns.iter().map(|pattern| match pattern {
        Bayer::Rggb => 1,
        Bayer::Bggr => 2,
        Bayer::Gbrg => 3,
        Bayer::Grbg => 4,
    });
    let names = |numbers: &mut dyn Iterator<Item = usize>| -> Vec<String> {
        numbers.map(|number| format!("prediction{number}")).collect()
    };
    let mut named = names(&mut by_pattern.into_iter());
    if !named.iter().all(|name| case.tensors.contains_key(&format!("output/{name}"))) {
        named = names(&mut (2..2 + patterns.len()));
    }
    let mut outputs: Outputs = named.into_iter().zip(found.predictions).collect();
    // The file's input is its raw image filled in.
    let off = (bilinear(&raw)? - input)?.abs()?.to_dtype(DType::F64)?.max_all()?.to_scalar::<f64>()?;
    if off > 1e-6 {
        candle_core::bail!("the interpolation is off by {off:e}");
    }
    outputs.push(("loss".to_owned(), found.loss));
    Ok(outputs)
}
