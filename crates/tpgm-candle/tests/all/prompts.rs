//! Prompts as parameters: with the zero anchor, or free.
#![allow(clippy::unwrap_used)]

use candle_core::{DType, Device, Tensor};
use tpgm_candle::nn::prompts::{
    FeaturePrompt, FeaturePromptBasis, Placement, VisualPromptShape, VisualPrompts,
};
use tpgm_candle::{
    AdamW, Anchor, Constraint, FixedRadius, Ftp, Norm, Params, Projection, RobustOptimizer, TpgmConfig,
};

const SHAPE: VisualPromptShape = VisualPromptShape { layers: 2, width: 4, patch: 2 };

/// Its gradient drives every number of the prompts in front of both blocks up.
fn loss(prompts: &VisualPrompts) -> candle_core::Result<Tensor> {
    let hidden = Tensor::zeros((1, 2, 4), DType::F32, &Device::Cpu)?;
    let first = prompts.apply(0, &hidden)?;
    let second = prompts.apply(1, &first)?;
    (first.sum_all()? + second.sum_all()?)?.neg()
}

#[test]
fn zero_anchored_prompts_are_bounded_around_zero() {
    let params = Params::default();
    let prompts = VisualPrompts::zero_anchored(SHAPE, Placement::Deep(3), "vit", 1, &params).unwrap();
    let param = params.get("vit.prompts").unwrap();
    assert!(matches!(param.anchor(), Anchor::Zero));
    let before = param.var().to_vec2::<f32>().unwrap();
    let radius = FixedRadius { radius: 0.5, norm: Norm::Mars };
    let mut optimizer = RobustOptimizer::new(&params, AdamW::default().lr(0.1), radius).unwrap();
    for _ in 0..20 {
        optimizer.backward_step(&loss(&prompts).unwrap()).unwrap();
    }
    // The model has the variable that was trained, and every prompt is a row of its own.
    let after = prompts.prompts().to_vec2::<f32>().unwrap();
    assert_ne!(after, before);
    for row in after {
        let norm: f32 = row.iter().map(|x| x.abs()).sum();
        assert!((norm - 0.5).abs() < 1e-5, "at the radius: {row:?}");
    }
}

/// Prompts of nodes, added to embedded features, under constraints that learn a radius or are given one: the radii are around
/// zero, and what is held is the variable that the model has.
#[test]
fn feature_prompts_are_bounded_around_zero() {
    let features = Tensor::new(&[[0.2f32, -0.4, 0.1], [1.0, 0.3, -0.2]], &Device::Cpu).unwrap();
    let fixed = FixedRadius { radius: 0.3, norm: Norm::Mars };
    let run = |constraint: Constraint| {
        let params = Params::default();
        let one = FeaturePrompt::zero_anchored(3, "one", 5, &params).unwrap();
        let plus = FeaturePromptBasis::zero_anchored(3, 4, "plus", 5, &params).unwrap();
        let names = ["one.prompt", "plus.basis", "plus.score.bias", "plus.score.weight"];
        assert_eq!(params.all().iter().map(|param| param.name().to_owned()).collect::<Vec<_>>(), names);
        assert!(params.all().iter().all(|param| matches!(param.anchor(), Anchor::Zero)));
        // It falls as prompts grow.
        let loss = || one.forward(&plus.forward(&features)?)?.sum_all()?.neg();
        let mut optimizer = RobustOptimizer::new(&params, AdamW::default().lr(0.1), constraint).unwrap();
        let learned = matches!(constraint, Constraint::Tpgm(_));
        if learned {
            optimizer.set_projection(Projection::Defer);
        }
        let before = loss().unwrap().to_scalar::<f32>().unwrap();
        for _ in 0..20 {
            optimizer.backward_step(&loss().unwrap()).unwrap();
            if learned {
                // Held-out samples want nothing added.
                let held_out = || one.forward(&plus.forward(&features)?)?.sqr()?.sum_all();
                optimizer.tpgm().unwrap().update(held_out).unwrap();
            }
        }
        let after = loss().unwrap().to_scalar::<f32>().unwrap();
        let rows = params.get("plus.basis").unwrap().var().to_vec2::<f32>().unwrap();
        let norms: Vec<f32> = rows.iter().map(|row| row.iter().map(|x| x.abs()).sum()).collect();
        (before - after, norms)
    };
    let (free, _) = run(Constraint::None);
    let (held, norms) = run(fixed.into());
    assert!(norms.iter().all(|norm| (norm - 0.3).abs() < 1e-5), "at the radius: {norms:?}");
    assert!(held < free, "{held} {free}");
    for constraint in [TpgmConfig::default().into(), Ftp::default().into()] {
        let (gained, norms) = run(constraint);
        assert!(gained < 0.9 * free, "{constraint:?}: {gained} of {free}, {norms:?}");
    }
    // The names are taken once, and first values depend on seed and name.
    let params = Params::default();
    let first = FeaturePrompt::zero_anchored(3, "", 5, &params).unwrap().forward(&features).unwrap();
    let error = FeaturePrompt::zero_anchored(3, "", 5, &params).unwrap_err().to_string();
    assert!(error.contains("`prompt`"), "{error}");
    let again =
        FeaturePrompt::zero_anchored(3, "", 5, &Params::default()).unwrap().forward(&features).unwrap();
    assert_eq!(first.to_vec2::<f32>().unwrap(), again.to_vec2::<f32>().unwrap());
    let error = FeaturePromptBasis::zero_anchored(3, 0, "", 5, &params).unwrap_err().to_string();
    assert!(error.contains("at least one vector"), "{error}");
}

#[test]
fn prompts_under_a_head_are_free_and_keep_their_place() {
    let params = Params::default().head("prompts");
    let placement = Placement::Placed(vec![1, 0, 1]);
    let mut prompts = VisualPrompts::new(SHAPE, placement, params.var_builder()).unwrap();
    assert!(matches!(params.get("prompts").unwrap().anchor(), Anchor::None));
    let mut optimizer = RobustOptimizer::new(
        &params,
        AdamW::default().lr(0.1),
        FixedRadius { radius: 0.5, norm: Norm::Mars },
    )
    .unwrap();
    for _ in 0..20 {
        optimizer.backward_step(&loss(&prompts).unwrap()).unwrap();
    }
    assert!(prompts.prompts().min_all().unwrap().to_scalar::<f32>().unwrap() > 1.0, "no radius holds them");
    // A moved prompt is the same parameter; the run goes on with it.
    prompts.relocate(2, 0, 1e-3).unwrap();
    assert_eq!(prompts.placement(), &Placement::Placed(vec![1, 0, 0]));
    let moved = params.get("prompts").unwrap().var().get(2).unwrap().to_vec1::<f32>().unwrap();
    assert!(moved.iter().all(|x| *x < 0.01), "{moved:?}");
    optimizer.backward_step(&loss(&prompts).unwrap()).unwrap();
    let json = serde_json::to_string(prompts.placement()).unwrap();
    let again: Placement = serde_json::from_str(&json).unwrap();
    VisualPrompts::with_prompts(SHAPE, again, prompts.prompts()).unwrap();
}
