//! Losses: what they promise and refuse. Their numbers against published code are in `tests/family` of `tpgm-candle`.

use candle_core::{DType, Device, Tensor, Var};
use tpgm_nn::losses::{
    CutMix, Divergence, Mixup, contrastive, cross_entropy_soft, cross_norm, distillation, energy_gap,
    entropy, entropy_of_mistakes, mixed_probabilities, multi_margin, one_hot, orthogonality,
    same_text_targets, zero_shot_head,
};
use tpgm_nn::random::SplitMix64;

use crate::gradients::message;

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
