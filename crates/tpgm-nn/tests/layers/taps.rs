//! Hidden states on their way through models, and ensembles over them.

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::{VarBuilder, VarMap};
use tpgm_nn::models::bert::{Bert, BertConfig, BertInput};
use tpgm_nn::models::llama::{Llama, LlamaConfig};
use tpgm_nn::models::resnet::{ResNet, ResNetConfig};
use tpgm_nn::models::vit::{Vit, VitConfig, VitLayout};
use tpgm_nn::models::{LayerEnsemble, Shares};
use tpgm_nn::prompts::{Placement, VisualPromptShape, VisualPrompts};
use tpgm_nn::{DropoutRng, Statistics, cross_entropy};

use crate::gradients::{assert_close, check_gradients, flat, message, values, weighted_sum};

fn vb(vars: &VarMap) -> VarBuilder<'static> {
    VarBuilder::from_varmap(vars, DType::F64, &Device::Cpu)
}

fn vit(vars: &VarMap) -> Vit {
    let config = VitConfig {
        hidden_size: 8,
        intermediate_size: 16,
        num_hidden_layers: 3,
        num_attention_heads: 2,
        image_size: 8,
        patch_size: 4,
        ..VitConfig::base_patch16_224()
    };
    Vit::with_layout(&config, VitLayout::Timm, &DropoutRng::new(0), vb(vars)).unwrap()
}

/// What hooks see, of a model that nobody changes: as many as blocks, and one more, and the result stays.
fn seen(
    blocks: usize,
    plain: Tensor,
    forward: impl Fn(&mut dyn FnMut(usize, Tensor) -> Result<Tensor>) -> Result<Tensor>,
) -> Vec<Tensor> {
    let mut seen = Vec::new();
    let output = forward(&mut |layer, hidden| {
        assert_eq!(layer, seen.len());
        seen.push(hidden.clone());
        Ok(hidden)
    });
    assert_close("output", &output.unwrap(), &plain, 0.0);
    assert_eq!(seen.len(), blocks + 1);
    // What goes on is what the hook returns: in front of the last block something else gives another result.
    let changed = forward(&mut |layer, hidden| if layer == blocks - 1 { hidden * 0.5 } else { Ok(hidden) });
    assert_ne!(flat(&changed.unwrap()), flat(&plain));
    let fails =
        forward(&mut |layer, hidden| if layer == 1 { candle_core::bail!("stop here") } else { Ok(hidden) });
    assert!(message(fails).contains("stop here"));
    seen
}

/// Without a hook, ResNet's blocks hand each other pixels, and planes with one: gradients are the same, and finite differences.
#[test]
fn a_hook_changes_no_gradient_of_a_resnet() {
    for config in [
        ResNetConfig { width: 4, layers: [1, 2, 1, 1], ..ResNetConfig::resnet18() },
        ResNetConfig { width: 2, layers: [2, 1, 1, 2], ..ResNetConfig::resnet50() },
    ] {
        let vars = VarMap::new();
        let config = config.statistics(Statistics::Running);
        let (model, images) = (ResNet::new(&config, vb(&vars)).unwrap(), values((3, 3, 40, 36), 1));
        // The same weights in every run: others have a kink within the difference quotients once in 200 runs.
        let mut drawn: Vec<_> = vars.data().lock().unwrap().clone().into_iter().collect();
        drawn.sort_by(|(a, _), (b, _)| a.cmp(b));
        for (i, (_, var)) in drawn.iter().enumerate().filter(|(_, (name, _))| !name.contains("running")) {
            let (noise, around) = if var.rank() == 1 { (0.2, 1.0) } else { (0.3, 0.0) };
            var.set(&values(var.shape(), i as u64 + 1).affine(noise, around).unwrap()).unwrap();
        }
        let grads = |y: Tensor| weighted_sum(&y).unwrap().backward().unwrap();
        let pixels = grads(model.forward(&images, true).unwrap());
        let planes = grads(model.forward_with(&images, true, |_, hidden| Ok(hidden)).unwrap());
        let (mut trained, mut alive) = (0, 0);
        for (name, var) in vars.data().lock().unwrap().iter().filter(|(name, _)| !name.contains("running")) {
            let [pixels, planes] = [&pixels, &planes].map(|grads| grads.get(var.as_tensor()).unwrap());
            assert_close(name, pixels, planes, 1e-12);
            trained += 1;
            alive += usize::from(flat(pixels).iter().any(|&x| x != 0.0));
        }
        // A block of so few channels may be dead for all images.
        assert!(trained > 40 && alive > 30, "{alive} of {trained}");
        check_gradients("images", &[images], |x| model.forward(&x[0], true));
    }
}

#[test]
fn hooks_see_every_block() {
    let vars = VarMap::new();
    let (model, images) = (vit(&vars), values((2, 3, 8, 8), 1));
    let plain = model.forward(&images, false).unwrap();
    let states = seen(3, plain, |hook| model.forward_with(&images, false, hook));
    assert!(states.iter().all(|state| state.dims() == [2, 5, 8]));

    let vars = VarMap::new();
    let config = ResNetConfig { width: 4, layers: [1, 2, 1, 1], ..ResNetConfig::resnet18() };
    let (model, images) = (ResNet::new(&config, vb(&vars)).unwrap(), values((2, 3, 32, 32), 1));
    let plain = model.forward(&images, false).unwrap();
    let states = seen(5, plain, |hook| model.forward_with(&images, false, hook));
    assert_eq!(states[5].dims(), [2, 32, 1, 1]);

    let vars = VarMap::new();
    let config = BertConfig {
        vocab_size: 11,
        hidden_size: 8,
        num_hidden_layers: 2,
        num_attention_heads: 2,
        intermediate_size: 16,
        max_position_embeddings: 6,
        ..BertConfig::default()
    };
    let model = Bert::new(&config, &DropoutRng::new(0), vb(&vars)).unwrap();
    let ids = Tensor::new(&[[1u32, 2, 3, 4, 5]], &Device::Cpu).unwrap();
    let input = BertInput::new(&ids, &ids.ones_like().unwrap());
    let plain = model.forward(&input, false).unwrap();
    seen(2, plain, |hook| model.forward_with(&input, false, hook));
    // Tokens that would have no position are refused by name.
    let longer = model.forward_with(&input, false, |_, hidden| Tensor::cat(&[&hidden, &hidden], 1));
    let error = message(longer);
    assert!(error.contains("hook of layer 0 made [1, 10, 8]") && error.contains("has a position"), "{error}");

    let vars = VarMap::new();
    let config = LlamaConfig {
        vocab_size: 11,
        hidden_size: 8,
        intermediate_size: 16,
        num_hidden_layers: 2,
        num_attention_heads: 2,
        num_key_value_heads: Some(1),
        max_position_embeddings: 6,
        ..LlamaConfig::default()
    };
    let model = Llama::new(&config, vb(&vars)).unwrap();
    let plain = model.forward(&ids, false).unwrap();
    seen(2, plain, |hook| model.forward_with(&ids, false, hook));
}

#[test]
fn prompts_go_through_a_vision_transformer() {
    let vars = VarMap::new();
    let (model, images) = (vit(&vars), values((2, 3, 8, 8), 1));
    let plain = model.forward(&images, false).unwrap();
    let shape = VisualPromptShape { layers: 3, width: 8, patch: 4 };
    for placement in [Placement::Shallow(4), Placement::Deep(2), Placement::Placed(vec![2, 0, 2])] {
        let prompts = VisualPrompts::new(
            shape,
            placement.clone(),
            VarBuilder::from_varmap(&VarMap::new(), DType::F64, &Device::Cpu),
        )
        .unwrap();
        let mut lengths = Vec::new();
        let features = model
            .forward_with(&images, false, |layer, hidden| {
                lengths.push(hidden.dim(1)?);
                prompts.apply(layer, &hidden)
            })
            .unwrap();
        assert_ne!(flat(&features), flat(&plain), "{placement:?}");
        let expected = match placement {
            Placement::Shallow(_) => [5, 9, 9, 9],
            Placement::Deep(_) => [5, 7, 7, 7],
            Placement::Placed(_) => [5, 6, 5, 7],
        };
        assert_eq!(lengths, expected, "{placement:?}");
        // Every prompt gets a gradient.
        let grads = features.sqr().unwrap().sum_all().unwrap().backward().unwrap();
        let grad = grads.get(prompts.prompts()).unwrap();
        let rows = grad.abs().unwrap().sum(1).unwrap().to_vec1::<f64>().unwrap();
        assert!(rows.iter().all(|row| *row > 0.0), "{placement:?}: {rows:?}");
    }
    let wide = VisualPromptShape { width: 6, ..shape };
    let prompts = VisualPrompts::new(wide, Placement::Shallow(1), vb(&VarMap::new())).unwrap();
    let error = message(model.forward_with(&images, false, |layer, hidden| prompts.apply(layer, &hidden)));
    assert!(error.contains("visual prompts: the hidden state must have the prompts' width"), "{error}");
}

#[test]
fn ensembles_have_a_gradient() {
    let vars = VarMap::new();
    let ensemble = LayerEnsemble::new(&[4, 3], 2, 5, Shares::Learned, vb(&vars)).unwrap();
    vars.data().lock().unwrap()["shares"].set(&Tensor::new(&[0.3f64, -0.8], &Device::Cpu).unwrap()).unwrap();
    let labels = Tensor::new(&[1u32, 4, 0], &Device::Cpu).unwrap();
    let inputs = [values((3, 4), 1), values((3, 3), 2), values((3, 2), 3)];
    check_gradients("layer ensemble", &inputs, |x| {
        cross_entropy(&ensemble.forward(&x[..2], &x[2])?, &labels)
    });
    // By its parameters too.
    let loss = cross_entropy(&ensemble.forward(&inputs[..2], &inputs[2]).unwrap(), &labels).unwrap();
    let grads = loss.backward().unwrap();
    for (name, var) in vars.data().lock().unwrap().iter() {
        let grad = grads.get(var).unwrap_or_else(|| panic!("{name}"));
        let (before, at) = (var.as_tensor().copy().unwrap(), 1);
        let moved = |by: f64| {
            let mut data = flat(&before);
            data[at] += by;
            var.set(&Tensor::from_vec(data, before.shape(), &Device::Cpu).unwrap()).unwrap();
            let loss = cross_entropy(&ensemble.forward(&inputs[..2], &inputs[2]).unwrap(), &labels).unwrap();
            loss.to_scalar::<f64>().unwrap()
        };
        let quotient = (moved(1e-5) - moved(-1e-5)) / 2e-5;
        var.set(&before).unwrap();
        assert!((flat(grad)[at] - quotient).abs() < 1e-8, "{name}: {} {quotient}", flat(grad)[at]);
    }
}

#[test]
fn uniform_shares_are_the_mean_of_the_parts() {
    let vars = VarMap::new();
    let ensemble = LayerEnsemble::new(&[4, 3], 2, 5, Shares::Uniform, vb(&vars)).unwrap();
    let (large, small) = ([values((3, 4), 1), values((3, 3), 2)], values((3, 2), 3));
    let data = vars.data().lock().unwrap();
    let part = |i: usize| {
        let (weight, bias) = (&data[&format!("adapters.{i}.weight")], &data[&format!("adapters.{i}.bias")]);
        let together = Tensor::cat(&[&large[i], &small], 1).unwrap();
        together.matmul(&weight.t().unwrap()).unwrap().broadcast_add(bias).unwrap()
    };
    let expected = ((part(0) + part(1)).unwrap() * 0.5).unwrap();
    assert_close("mean", &ensemble.forward(&large, &small).unwrap(), &expected, 1e-14);

    let error = message(ensemble.forward(&large[..1], &small));
    assert!(error.contains("layer ensemble: 1 vectors for 2 adapting layers"), "{error}");
    let error = message(ensemble.forward(&[large[1].clone(), large[0].clone()], &small));
    assert!(error.contains("layer ensemble: each block's features"), "{error}");
    let error = message(ensemble.forward(&large, &large[0]));
    assert!(error.contains("the small network's features must have its width"), "{error}");
    assert!(
        LayerEnsemble::new(&[], 2, 5, Shares::Uniform, VarBuilder::zeros(DType::F32, &Device::Cpu)).is_err()
    );
}
