//! Prompts: what they promise and refuse. Their numbers against published code are in `tests/family` of `tpgm-candle`.

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::{VarBuilder, VarMap};
use tpgm_nn::Error;
use tpgm_nn::lora::VarFactors;
use tpgm_nn::prompts::{
    Allocation, FeaturePrompt, FeaturePromptBasis, Memory, Placement, Ppo, PpoOptions, Relocation, Thompson,
    VisualPromptShape, VisualPrompts,
};

const SHAPE: VisualPromptShape = VisualPromptShape { layers: 3, width: 4, patch: 2 };

fn placed(places: &[usize]) -> (VisualPrompts, VarMap) {
    let vars = VarMap::new();
    let vb = VarBuilder::from_varmap(&vars, DType::F64, &Device::Cpu);
    (VisualPrompts::new(SHAPE, Placement::Placed(places.to_vec()), vb).unwrap(), vars)
}

#[test]
fn prompts_are_parameters_within_their_bound() {
    let vars = VarMap::new();
    let factors = VarFactors::new(VarBuilder::zeros(DType::F32, &Device::Cpu), &vars);
    let make =
        |name: &str, seed| VisualPrompts::zero_anchored(SHAPE, Placement::Deep(5), name, seed, &factors);
    let prompts = make("vit", 3).unwrap();
    assert_eq!(vars.data().lock().unwrap()["vit.prompts"].dims(), [15, 4]);
    let bound = (6.0f32 / 16.0).sqrt(); // 3 * 2^2 + 4
    let values = prompts.prompts().flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let largest = values.iter().fold(0f32, |max, x| max.max(x.abs()));
    assert!(largest <= bound && largest > 0.8 * bound, "{largest} {bound}");
    assert_ne!(values, make("other", 3).unwrap().prompts().flatten_all().unwrap().to_vec1::<f32>().unwrap());
    let twice = make("vit", 3).unwrap_err();
    assert!(matches!(&twice, Error::DuplicateFactor { name } if name == "vit.prompts"), "{twice}");
}

#[test]
fn an_idle_prompt_moves_and_its_reward_is_learned() {
    let (mut prompts, vars) = placed(&[0, 2, 2]);
    let target = Tensor::new(&[0.5f64, -1.0, 0.25, 1.0], &Device::Cpu).unwrap();
    // The loss falls with the first prompt and grows with the others, the last the most: that one is idle.
    let loss = |prompts: &VisualPrompts| {
        let mut hidden = Tensor::zeros((1, 2, 4), DType::F64, &Device::Cpu)?;
        let mut total = Tensor::zeros((), DType::F64, &Device::Cpu)?;
        for layer in 0..=3 {
            hidden = prompts.apply(layer, &hidden)?;
            assert_eq!(hidden.dim(1)?, 2 + count(prompts, layer), "behind a block its prompts are dropped");
            let of_layer = if layer == 0 { hidden.broadcast_mul(&target)?.neg()? } else { hidden.sqr()? };
            total = (total + of_layer.sum_all()?)?;
        }
        Ok::<_, candle_core::Error>(total)
    };
    fn count(prompts: &VisualPrompts, layer: usize) -> usize {
        let Placement::Placed(places) = prompts.placement() else { panic!() };
        places.iter().filter(|at| **at == layer).count()
    }
    let rows =
        Tensor::new(&[[0.1f64, 0.1, 0.1, 0.1], [0.2, 0.0, 0.0, 0.1], [0.9, 0.9, 0.9, 0.9]], &Device::Cpu)
            .unwrap();
    vars.data().lock().unwrap()["prompts"].set(&rows).unwrap();
    let mut relocation = Relocation::new(Allocation::Thompson(Thompson::new(3).unwrap()), 1);
    let pass = |relocation: &mut Relocation, prompts: &mut VisualPrompts| {
        let value = loss(prompts).unwrap();
        relocation.add(prompts, value.to_scalar().unwrap(), &value.backward().unwrap()).unwrap();
        relocation.relocate(prompts).unwrap()
    };
    assert_eq!(pass(&mut relocation, &mut prompts), None, "nothing moves in the first epoch");
    let moved = pass(&mut relocation, &mut prompts).unwrap();
    // The gradient of sum p^2 by the gate of p is twice its squared length.
    assert_eq!((moved.prompt, moved.from), (2, 2));
    assert!((moved.score - 2.0 * 4.0 * 0.81).abs() < 1e-12, "{moved:?}");
    assert_eq!(prompts.placement(), &Placement::Placed(vec![0, 2, moved.to]));
    let after = prompts.prompts().to_vec2::<f64>().unwrap();
    assert_eq!(after[0], [0.1; 4]);
    assert!(after[2].iter().all(|x| (x - 0.9e-3).abs() < 1e-15), "{after:?}");
    // The optimizer's variable is the one that changed.
    assert_eq!(vars.data().lock().unwrap()["prompts"].to_vec2::<f64>().unwrap(), after);
    // Reward of the move: loss before - loss now - score, here 0 plus what is left of the squares.
    let next = pass(&mut relocation, &mut prompts);
    assert!(next.is_some_and(|next| next.prompt == 1), "{next:?}");
}

#[test]
fn a_policy_learns_which_block_helps() {
    let options = PpoOptions { every: 8, actor_lr: 3e-3, ..PpoOptions::default() };
    let mut policy = Ppo::new(4, PpoOptions { discount: 0.0, ..options }, 7).unwrap();
    let mut random = tpgm_nn::random::SplitMix64::new(4);
    let state = vec![0.1; 12];
    let mut chosen = [0; 4];
    for round in 0..160 {
        let memory = policy.choose(&state, &mut random).unwrap();
        if round >= 120 {
            chosen[memory.action] += 1;
        }
        let reward = if memory.action == 1 { 1.0 } else { 0.0 };
        policy.reward(memory, reward).unwrap();
    }
    assert!(chosen[1] > 20, "{chosen:?}");
}

fn text<T>(result: tpgm_nn::Result<T>) -> String {
    match result {
        Ok(_) => panic!("no error"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn what_does_not_fit_is_named() {
    let vars = VarMap::new();
    let vb = || VarBuilder::from_varmap(&vars, DType::F64, &Device::Cpu);
    let new = |placement| text(VisualPrompts::new(SHAPE, placement, vb()));
    let (mut prompts, _vars) = placed(&[0, 2]);
    let wide = Tensor::zeros((1, 3, 5), DType::F64, &Device::Cpu).unwrap();
    let short = Tensor::zeros((1, 1, 4), DType::F64, &Device::Cpu).unwrap();
    let shallow = VisualPrompts::new(SHAPE, Placement::Shallow(2), vb().pp("shallow")).unwrap();
    let constant = Tensor::zeros((1, 4), DType::F64, &Device::Cpu).unwrap();
    let mut constant = VisualPrompts::with_prompts(SHAPE, Placement::Placed(vec![0]), &constant).unwrap();
    let grads = shallow.prompts().sum_all().unwrap().backward().unwrap();
    let mut relocation = Relocation::new(Allocation::Thompson(Thompson::new(2).unwrap()), 0);
    let memory = Memory { state: vec![0.0; 12], action: 4, log_probability: 0.0, value: 0.0 };
    let mut policy = Ppo::new(4, PpoOptions::default(), 0).unwrap();
    let candle = |result: Result<Tensor>| text(result.map_err(Error::from));
    for (error, expected) in [
        (new(Placement::Shallow(0)), "prompts: there are none"),
        (new(Placement::Placed(vec![0, 3])), "prompt 1 is placed in front of block 3, but there are 3"),
        (candle(prompts.apply(4, &short)), "visual prompts: there is no block 4; they are for a model of 3"),
        (candle(prompts.apply(0, &wide)), "visual prompts: the hidden state must have the prompts' width"),
        (candle(prompts.apply(1, &short)), "visual prompts: the hidden state must have"),
        (text(prompts.relocate(2, 0, 1.0)), "there is no prompt 2; there are 2"),
        (text(prompts.relocate(0, 3, 1.0)), "there is no block 3"),
        (text(constant.relocate(0, 1, 1.0)), "they are no variable"),
        (text(shallow.scores(&grads)), "only prompts with `Placement::Placed`"),
        (text(prompts.scores(&grads)), "no gradient of their gates"),
        (text(relocation.relocate(&mut prompts)), "chooses among 2 blocks, the model has 3"),
        (text(policy.update(&[memory.clone(), memory.clone()], &[0.0, 1.0])), "there is no block 4"),
        (text(policy.update(&[memory], &[0.0])), "1 choices and 1 rewards"),
        (
            text(policy.choose(&[0.0], &mut tpgm_nn::random::SplitMix64::new(0))),
            "a state has 1 numbers, but 4 blocks need 12",
        ),
        (text(Ppo::new(4, PpoOptions { every: 1, ..PpoOptions::default() }, 0)), "PPO: every is 1"),
        (text(Ppo::new(4, PpoOptions { clip: f64::NAN, ..PpoOptions::default() }, 0)), "PPO: clip is NaN"),
        (text(FeaturePromptBasis::new(4, 0, vb())), "a basis needs at least one vector"),
        (
            candle(FeaturePrompt::new(4, vb().pp("one")).unwrap().forward(&wide)),
            "feature prompt: features must have",
        ),
        (
            candle(FeaturePromptBasis::new(4, 2, vb().pp("some")).unwrap().forward(&wide)),
            "feature prompt basis: features must have",
        ),
    ] {
        assert!(error.contains(expected), "{error}");
    }
}
