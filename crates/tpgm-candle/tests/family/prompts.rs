//! Prompts: visual ones, those of nodes, and the policy that places them.

use candle_core::{D, Device, Result, Tensor, Var};
use candle_nn::VarBuilder;
use serde_json::Value;
use tpgm_candle::nn::cross_entropy;
use tpgm_candle::nn::prompts::{
    FeaturePrompt, FeaturePromptBasis, Memory, Placement, Ppo, PpoOptions, VisualPromptShape, VisualPrompts,
};
use tpgm_candle::nn::random::SplitMix64;

use crate::case::{Case, Outputs, numbers};
use crate::losses::named;

/// The blocks of the cases: `tanh(h self + mean over tokens(h) mean)`.
fn through(case: &Case, layers: usize, prompts: &VisualPrompts) -> Result<Tensor> {
    let mut h = case.input("tokens")?;
    for layer in 0..layers {
        h = prompts.apply(layer, &h)?;
        let own = h.broadcast_matmul(&case.input(&format!("layer{layer}/self"))?)?;
        let mean = h.mean_keepdim(1)?.broadcast_matmul(&case.input(&format!("layer{layer}/mean"))?)?;
        h = own.broadcast_add(&mean)?.tanh()?;
    }
    Ok(h)
}

pub(crate) fn visual_prompt(case: &Case) -> Result<Outputs> {
    let (layers, count) = (case.number("/layers")? as usize, case.number("/prompts")? as usize);
    let width = case.input("tokens")?.dim(D::Minus1)?;
    let shape = VisualPromptShape { layers, width, patch: 16 };
    let (first, deep) = (case.input("shallow")?.squeeze(0)?, case.input("deep")?.reshape(((), width))?);
    let shallow = VisualPrompts::with_prompts(shape, Placement::Shallow(count), &first)?;
    let all = Tensor::cat(&[&first, &deep], 0)?;
    let deep = VisualPrompts::with_prompts(shape, Placement::Deep(count), &all)?;

    let counts = case.settings["placement"].as_array().into_iter().flatten();
    let counts: Vec<usize> = counts.filter_map(Value::as_u64).map(|count| count as usize).collect();
    let used: Vec<usize> = (0..layers).filter(|layer| counts[*layer] > 0).collect();
    let of_used = |name: &str| -> Result<Tensor> {
        let parts = used.iter().map(|layer| case.input(&format!("{name}/{layer}")));
        Tensor::cat(&parts.collect::<Result<Vec<_>>>()?, 0)
    };
    // The cases' gates are not all 1; ours are, so these are taken into the prompts, and their gradient comes through them.
    let gates = of_used("gates")?;
    let rows = of_used("placed")?.broadcast_mul(&gates.unsqueeze(1)?)?;
    let places = counts.iter().enumerate().flat_map(|(layer, count)| vec![layer; *count]).collect();
    let placed = VisualPrompts::with_prompts(shape, Placement::Placed(places), &rows)?;
    let hidden = through(case, layers, &placed)?;
    let logits = hidden.narrow(1, 0, 1)?.squeeze(1)?.matmul(&case.input("readout")?)?;
    let loss = cross_entropy(&logits, &case.input("labels")?)?;
    // The score of a prompt is the gradient by our gate: the gradient by the case's, times the case's.
    let grads = loss.backward()?;
    let scores = placed.scores(&grads)?;
    let mut expected = Vec::new();
    for layer in &used {
        expected.extend(numbers(&case.tensors[&format!("grad/placed_loss/gates/{layer}")])?);
    }
    for ((score, expected), gate) in scores.iter().zip(&expected).zip(numbers(&gates)?) {
        if (score / gate - expected).abs() > case.limit * expected.abs().max(1e-3) {
            candle_core::bail!("a score is {score}, not {}", expected * gate);
        }
    }
    Ok(named([
        ("vpt_shallow", through(case, layers, &shallow)?),
        ("vpt_deep", through(case, layers, &deep)?),
        ("placed", hidden),
        ("placed_loss", loss),
    ]))
}

pub(crate) fn graph_prompt(case: &Case) -> Result<Outputs> {
    let x = case.input("x")?;
    let tensors = ["prompt", "basis", "score.weight", "score.bias"];
    let tensors = tensors.map(|name| Ok((name.to_owned(), case.input(name)?)));
    let vb = VarBuilder::from_tensors(tensors.into_iter().collect::<Result<_>>()?, x.dtype(), &Device::Cpu);
    let (width, vectors) = (case.number("/width")? as usize, case.number("/basis")? as usize);
    let one = FeaturePrompt::new(width, vb.clone())?.forward(&x)?;
    let plus = FeaturePromptBasis::new(width, vectors, vb)?.forward(&x)?;
    Ok(named([("gpf", one), ("gpf_plus", plus)]))
}

/// An update of the policy by given choices and rewards.
pub(crate) fn prompt_allocation(case: &Case) -> Result<Outputs> {
    let number = |option: &str| case.number(&format!("/{option}"));
    let options = PpoOptions {
        actor_lr: number("actor_lr")?,
        critic_lr: number("critic_lr")?,
        clip: number("clip")?,
        epochs: number("epochs")? as usize,
        discount: number("discount")?,
        value_weight: number("value_weight")?,
        entropy_weight: number("entropy_weight")?,
        hidden: number("hidden")? as usize,
        ..PpoOptions::default()
    };
    let blocks = number("blocks")? as usize;
    let policy = |which: &str| {
        Ppo::with_weights(blocks, options, |name, _| {
            Var::from_tensor(&case.input(&format!("{which}/{name}"))?)
        })
    };
    let states = case.input("state")?.to_dtype(candle_core::DType::F64)?.to_vec2::<f64>()?;
    let actions = case.input("action")?.to_vec1::<i64>()?;
    let (log, value) = (case.numbers("old_log_probability")?, case.numbers("old_value")?);
    let (acting, mut random) = (policy("old")?, SplitMix64::new(1));
    let mut memories = Vec::new();
    for (i, state) in states.iter().enumerate() {
        let said = acting.choose(state, &mut random)?;
        if (said.value - value[i]).abs() > 1e-5 * value[i].abs().max(1.0) {
            candle_core::bail!("the value of state {i} is {}, not {}", said.value, value[i]);
        }
        memories.push(Memory {
            state: state.clone(),
            action: actions[i] as usize,
            log_probability: log[i],
            value: value[i],
        });
    }
    let mut policy = policy("weight")?;
    let loss = policy.update(&memories, &case.numbers("reward")?)?;
    let weights = policy.weights().into_iter().map(|(name, weight)| (format!("weight/{name}"), weight));
    Ok(weights.chain([("loss".to_owned(), Tensor::new(loss, &Device::Cpu)?)]).collect())
}
