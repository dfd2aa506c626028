//! Losses against numbers and gradients that the authors' published code computed, and what they refuse.

use candle_core::{D, DType, Device, Result, Tensor, Var};
use tpgm_nn::losses::{
    CutMix, Divergence, Mixup, contrastive, cross_entropy_soft, cross_norm, distillation, energy_gap,
    entropy, entropy_of_mistakes, mixed_probabilities, multi_margin, one_hot, orthogonality,
    same_text_targets, zero_shot_head,
};
use tpgm_nn::random::SplitMix64;
use tpgm_nn::{cross_entropy, cross_entropy_smoothed};

use crate::golden::{Case, golden};
use crate::gradients::message;

#[test]
fn carot() {
    golden("carot", 7, |case| {
        let smoothing = case.number("/label_smoothing");
        let scale = case.input("scale");
        let pairs = contrastive(&case.input("image"), &case.input("text"), &scale, smoothing)?;
        let mut total = pairs.loss.clone();
        let mut outputs = vec![("contrastive", pairs.loss.clone())];
        let strength = |term: &str| case.number(&format!("/coefficients/{term}"));
        if strength("cross_norm") > 0.0 {
            let norm = cross_norm(&case.input("visual_projection"), &case.input("text_projection"))?;
            total = (total + norm * strength("cross_norm"))?;
        }
        if strength("orthogonality") > 0.0 {
            total = (total + orthogonality(&case.input("visual_projection"))? * strength("orthogonality"))?;
        }
        if strength("self_distillation") > 0.0 && case.number("/step") >= 1.0 {
            let [image, text] = ["teacher_image", "teacher_text"].map(|name| case.input(name));
            let teacher = contrastive(&image, &text, &case.input("teacher_scale"), 0.0)?.logits;
            let along = |a: &Tensor, b: &Tensor| distillation(a, b, 1.0, Divergence::CrossEntropy);
            let other = along(&pairs.logits.t()?, &teacher.t()?)?;
            let term = (along(&pairs.logits, &teacher)? + other)?;
            total = (total + (&term * strength("self_distillation"))?)?;
            outputs.push(("self_distillation", term));
        }
        outputs.push(("total", total));
        Ok(outputs)
    });
}

/// Rows divided by their lengths.
fn unit(x: &Tensor) -> Result<Tensor> {
    x.broadcast_div(&x.sqr()?.sum_keepdim(D::Minus1)?.sqrt()?)
}

#[test]
fn lipsum() {
    golden("lipsum", 3, |case| {
        let features =
            |pooled: &str, projection: &str| unit(&case.input(pooled).matmul(&case.input(projection))?);
        let image = features("pooled", "projection")?;
        let anchor = features("pooled_anchor", "projection_anchor")?;
        let text = features("text_pooled", "text_projection")?;
        let scale = case.input("logit_scale").to_dtype(DType::F64)?.to_scalar::<f64>()?.exp();
        let logits = (image.matmul(&case.input("head"))? * scale)?;
        let classes =
            cross_entropy_smoothed(&logits, &case.input("labels"), case.number("/label_smoothing"))?;
        let gap = energy_gap(&image, &anchor, &text, scale)?;
        let total = (&classes + (&gap * case.number("/strength"))?)?;
        Ok(vec![("cross_entropy", classes), ("regularizer", gap), ("total", total)])
    });
}

#[test]
fn autoft() {
    golden("autoft", 3, |case| {
        let (logits, labels) = (case.input("logits"), case.input("labels"));
        let mut outputs = vec![
            ("ce", cross_entropy(&logits, &labels)?),
            ("dcm", entropy_of_mistakes(&logits, &labels)?),
            ("entropy", entropy(&logits)?),
            ("hinge", multi_margin(&logits, &labels, 1.0)?),
        ];
        if case.settings["terms"].as_array().unwrap().iter().any(|term| term == "flyp") {
            let pairs = contrastive(&case.input("image"), &case.input("text"), &case.input("scale"), 0.0)?;
            outputs.push(("flyp", pairs.loss));
        }
        Ok(outputs)
    });
}

#[test]
fn smoothing_and_mixed_labels() {
    golden("cross_entropy", 1, |case| {
        let (logits, labels, others) =
            (case.input("logits"), case.input("labels"), case.input("other_labels"));
        let share = case.number("/mixup_lambda");
        let smoothed = cross_entropy_smoothed(&logits, &labels, case.number("/label_smoothing"))?;
        // Mixed labels are soft targets.
        let one_hot = |labels: &Tensor| one_hot(labels, logits.dim(1)?, logits.dtype());
        let targets = ((one_hot(&labels)? * share)? + (one_hot(&others)? * (1.0 - share))?)?;
        Ok(vec![("smoothed", smoothed), ("mixup", cross_entropy_soft(&logits, &targets)?)])
    });
}

/// Two linear towers, as the cases of GIFT have them.
struct Towers {
    image: Var,
    text: Var,
    logit_scale: Var,
}

impl Towers {
    fn of(case: &Case, which: &str) -> Self {
        let var = |name: &str| Var::from_tensor(&case.input(&format!("{which}/{name}"))).unwrap();
        Self { image: var("image"), text: var("text"), logit_scale: var("logit_scale") }
    }

    fn features(&self, case: &Case, images: &str, texts: &Tensor) -> Result<(Tensor, Tensor)> {
        let image = unit(&case.input(images).matmul(&self.image.t()?)?)?;
        Ok((image, unit(&texts.matmul(&self.text.t()?)?)?))
    }
}

#[test]
fn gift() {
    golden("gift", 7, |case| {
        let (model, previous) = (Towers::of(case, "weight"), Towers::of(case, "previous"));
        let smoothing = case.number("/label_smoothing");
        let (image, classes) = model.features(case, "images", &case.input("class_texts"))?;
        let logits = image.matmul(&classes.t()?)?.broadcast_mul(&model.logit_scale.exp()?)?;
        let task = cross_entropy_smoothed(&logits, &case.input("labels"), smoothing)?;

        let which = case.input("pair_labels");
        let texts = case.input("pair_texts").index_select(&which, 0)?;
        let (temperature, flag) = (case.number("/temperature"), |name: &str| case.settings[name] == true);
        let (image, text) = model.features(case, "pair_images", &texts)?;
        let (old_image, old_text) = previous.features(case, "pair_images", &texts)?;
        let teacher = contrastive(&old_image, &old_text, &previous.logit_scale.exp()?, 0.0)?.logits;
        // Where only images are distilled, the student is asked about the teacher's texts.
        let text = if flag("image_only") { old_text.detach() } else { text };
        let pairs = contrastive(&image, &text, &model.logit_scale.exp()?, 0.0)?;
        let divergence = if flag("reverse_kl") { Divergence::ReverseKl } else { Divergence::CrossEntropy };
        let targets = same_text_targets(&which, image.dtype(), smoothing)?;
        let one = |turned: bool| -> Result<(Tensor, Tensor)> {
            let turn = |x: &Tensor| if turned { x.t()?.contiguous() } else { Ok(x.clone()) };
            let (l, t) = (turn(&pairs.logits)?, turn(&teacher)?);
            Ok((distillation(&l, &t, temperature, divergence)?, cross_entropy_soft(&l, &targets)?))
        };
        let ((distilled, matched), (other_distilled, other_matched)) = (one(false)?, one(true)?);
        let (distilled, matched) = ((distilled + other_distilled)?, (matched + other_matched)?);
        let mut outputs = vec![("cross_entropy", task)];
        if case.number("/distillation") > 0.0 {
            outputs.push(("distillation", (distilled * case.number("/distillation"))?));
        }
        if case.number("/matching") > 0.0 {
            outputs.push(("matching", (matched * case.number("/matching"))?));
        }
        Ok(outputs)
    });
}

#[test]
fn drm_inference() {
    golden("drm_inference", 1, |case| {
        let scale = case.input("logit_scale").exp()?;
        let concept = zero_shot_head(&case.input("concept_text"), &scale)?;
        let basic = zero_shot_head(&case.input("class_text"), &scale)?;
        let image = unit(&case.input("image"))?;
        let probability = mixed_probabilities(&image, &basic, &concept, case.number("/beta"))?;
        Ok(vec![("concept_head", concept), ("class_head", basic), ("probability", probability)])
    });
}

#[test]
fn gaps_that_overflow_a_probability_are_finite() {
    let far = Tensor::new(&[[0f32, 500.0], [300.0, -300.0]], &Device::Cpu).unwrap();
    let near = Tensor::new(&[[0f32, 1.0], [0.5, 0.0]], &Device::Cpu).unwrap();
    for divergence in [Divergence::CrossEntropy, Divergence::ForwardKl, Divergence::ReverseKl] {
        for (student, teacher) in [(&far, &near), (&near, &far), (&far, &far)] {
            let var = Var::from_tensor(student).unwrap();
            let loss = distillation(var.as_tensor(), teacher, 1.0, divergence).unwrap();
            let grads = loss.backward().unwrap();
            let grad = grads.get(&var).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
            assert!(loss.to_scalar::<f32>().unwrap().is_finite(), "{divergence:?}");
            assert!(grad.iter().all(|x| x.is_finite()), "{divergence:?}: {grad:?}");
        }
    }
    let var = Var::from_tensor(&far).unwrap();
    let loss = entropy(var.as_tensor()).unwrap();
    assert_eq!(loss.to_scalar::<f32>().unwrap(), 0.0);
    let grads = loss.backward().unwrap();
    assert!(
        grads
            .get(&var)
            .unwrap()
            .flatten_all()
            .unwrap()
            .to_vec1::<f32>()
            .unwrap()
            .iter()
            .all(|x| x.is_finite())
    );
}

#[test]
fn divergences_at_the_teacher_are_zero_and_pull_towards_it() {
    let teacher = Tensor::new(&[[0.3f64, -1.0, 2.0]], &Device::Cpu).unwrap();
    for divergence in [Divergence::ForwardKl, Divergence::ReverseKl] {
        let at = distillation(&teacher, &teacher, 2.0, divergence).unwrap().to_scalar::<f64>().unwrap();
        assert!(at.abs() < 1e-14, "{divergence:?}: {at}");
        let off = distillation(&(&teacher * 0.5).unwrap(), &teacher, 2.0, divergence).unwrap();
        assert!(off.to_scalar::<f64>().unwrap() > 0.01, "{divergence:?}");
    }
}

#[test]
fn penalties_at_their_minimum_have_no_gradient() {
    let eye = Var::from_tensor(&Tensor::eye(3, DType::F64, &Device::Cpu).unwrap()).unwrap();
    let loss = orthogonality(eye.as_tensor()).unwrap();
    assert_eq!(loss.to_scalar::<f64>().unwrap(), 0.0);
    let grads = loss.backward().unwrap();
    let grad = grads.get(&eye).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
    assert!(grad.iter().all(|x| *x == 0.0), "{grad:?}");
}

#[test]
fn pairs_with_one_text_belong_together() {
    let texts = Tensor::new(&[4i64, 7, 4], &Device::Cpu).unwrap();
    let targets = same_text_targets(&texts, DType::F64, 0.0).unwrap().to_vec2::<f64>().unwrap();
    assert_eq!(targets, [[0.5, 0.0, 0.5], [0.0, 1.0, 0.0], [0.5, 0.0, 0.5]]);
    let smoothed =
        same_text_targets(&texts, DType::F64, 0.3).unwrap().sum(1).unwrap().to_vec1::<f64>().unwrap();
    assert!(smoothed.iter().all(|sum| (sum - 1.0).abs() < 1e-15));
    // All texts different: the diagonal, as `contrastive` has it.
    let features = Tensor::new(&[[0.6f64, 0.8], [1.0, 0.0]], &Device::Cpu).unwrap();
    let scale = Tensor::new(3.0f64, &Device::Cpu).unwrap();
    let pairs = contrastive(&features, &features, &scale, 0.2).unwrap();
    let different =
        same_text_targets(&Tensor::new(&[0u32, 1], &Device::Cpu).unwrap(), DType::F64, 0.2).unwrap();
    let (a, b) = (
        pairs.loss.to_scalar::<f64>().unwrap(),
        pairs.against(&different).unwrap().to_scalar::<f64>().unwrap(),
    );
    assert!((a - b).abs() < 1e-14, "{a} {b}");
}

#[test]
fn what_does_not_fit_is_named() {
    let (a, b) = (
        Tensor::zeros((2, 3), DType::F32, &Device::Cpu).unwrap(),
        Tensor::zeros((2, 4), DType::F32, &Device::Cpu).unwrap(),
    );
    let none = Tensor::zeros((0, 3), DType::F32, &Device::Cpu).unwrap();
    let labels = Tensor::new(&[0u32, 5], &Device::Cpu).unwrap();
    let scale = Tensor::new(1f32, &Device::Cpu).unwrap();
    let random = || SplitMix64::new(0);
    let images = Tensor::zeros((2, 1, 4, 4), DType::F32, &Device::Cpu).unwrap();
    for (error, expected) in [
        (message(Mixup { alpha: 0.0 }.mix(&images, &a, &mut random())), "mixup: alpha is 0, but must be"),
        (
            message(Mixup { alpha: 1.0 }.mix(&images, &labels, &mut random())),
            "mixup: targets must have the shape (batch, classes)",
        ),
        (message(CutMix { alpha: f64::NAN }.mix(&images, &a, &mut random())), "CutMix: alpha is NaN"),
        (message(CutMix { alpha: 1.0 }.mix(&a, &a, &mut random())), "CutMix: images must have the shape"),
        (message(one_hot(&labels, 3, DType::F32)), "one-hot labels: the label of row 1 is 5"),
        (message(zero_shot_head(&scale, &scale)), "zero-shot head: embeddings must have the shape"),
        (message(zero_shot_head(&a, &a)), "zero-shot head: the scale must be one number"),
        (message(mixed_probabilities(&a, &b, &b, 0.5)), "mixed probabilities: heads must have one shape"),
        (message(mixed_probabilities(&a, &a, &a, 1.5)), "mixed probabilities: share is 1.5"),
        (
            message(cross_entropy_soft(&a, &b)),
            "soft-target cross-entropy: logits and targets must have one shape; got [[2, 3], [2, 4]]",
        ),
        (message(entropy(&none)), "entropy: there must be at least one row"),
        (
            message(distillation(&a, &a, 0.0, Divergence::ForwardKl)),
            "distillation: temperature is 0, but must be finite and above 0",
        ),
        (message(distillation(&a, &a, f64::NAN, Divergence::ForwardKl)), "temperature is NaN"),
        (
            message(distillation(&a, &b, 1.0, Divergence::ForwardKl)),
            "student and teacher must have one shape",
        ),
        (message(entropy_of_mistakes(&a, &labels)), "entropy of mistakes"),
        (message(multi_margin(&a, &labels.narrow(0, 0, 1).unwrap(), 1.0)), "a label for every row"),
        (message(multi_margin(&a, &labels, -1.0)), "margin is -1"),
        (message(multi_margin(&a, &labels, 1.0)), "multi-class margin: "),
        (
            message(multi_margin(&a, &labels.to_dtype(DType::F32).unwrap(), 1.0)),
            "labels must be u8, u32 or i64",
        ),
        (
            message(contrastive(&a, &b, &scale, 0.0).map(|pairs| pairs.loss)),
            "contrastive loss: images and texts must be pairs",
        ),
        (message(contrastive(&a, &a, &a, 0.0).map(|pairs| pairs.loss)), "the scale must be one number"),
        (message(contrastive(&a, &a, &scale, 1.5).map(|pairs| pairs.loss)), "label smoothing is 1.5"),
        (message(same_text_targets(&labels, DType::F32, -0.1)), "label smoothing is -0.1"),
        (message(cross_norm(&a, &b)), "cross norm: the projections must have the same number of features"),
        (message(orthogonality(&scale)), "orthogonality: the projection must be a matrix"),
        (message(energy_gap(&a, &a, &b, 1.0)), "energy gap: images and anchors must have one shape"),
    ] {
        assert!(error.contains(expected), "{error}");
    }
}
