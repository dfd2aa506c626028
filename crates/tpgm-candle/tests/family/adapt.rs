//! Teachers and adaptation at test time: CaRot's average, FSTTA's fast and slow weights.

use candle_core::{D, DType, Device, Module, Result, Tensor, Var};
use tpgm_candle::adapt::{FastOptions, FastWeights, norms};
use tpgm_candle::core::gradient::{SlowDirection, slow_gradient};
use tpgm_candle::nn::LayerNorm;
use tpgm_candle::nn::losses::entropy;
use tpgm_candle::teacher::{Momentum, Teacher};
use tpgm_candle::{Anchor, Constraint, Param, Params};

use crate::case::{Case, Outputs, numbers};

fn wrap(error: impl std::error::Error + Send + Sync + 'static) -> candle_core::Error {
    candle_core::Error::wrap(error)
}

/// The student goes where the case says; the published loop moves the teacher once more at its very end.
pub(crate) fn carot_teacher(case: &Case) -> Result<Outputs> {
    let names = case.names("teacher0");
    let start = |name: &String| Var::from_tensor(&case.input(&format!("teacher0/{name}"))?);
    let vars = names.iter().map(start).collect::<Result<Vec<_>>>()?;
    let params = names.iter().zip(&vars).map(|(name, var)| Param::new(name, var.clone(), Anchor::None));
    let params = Params::from_params(params).map_err(wrap)?;
    let length = case.number("/batches_per_epoch")? * case.number("/epochs")?;
    let momentum = Momentum::ramp(
        case.number("/momentum_start")?,
        case.number("/momentum_end")?,
        length * case.number("/momentum_warmup_share")?,
    );
    let mut teacher =
        Teacher::average(&params, momentum, case.number("/update_every")? as u64).map_err(wrap)?;
    let mut momenta = Vec::new();
    let mut weights = vec![Vec::new(); names.len()];
    for step in 0..case.number("/steps")? as usize {
        for (name, var) in names.iter().zip(&vars) {
            var.set(&case.input(&format!("student/{name}"))?.get(step)?)?;
        }
        let moved = if step as f64 == length { teacher.update_now() } else { teacher.update() };
        momenta.push(moved.map_err(wrap)?.unwrap_or(0.0));
        let now = teacher.with(|| vars.iter().map(|var| var.copy()).collect::<Result<Vec<_>>>());
        weights.iter_mut().zip(now.map_err(wrap)?).for_each(|(all, weight)| all.push(weight));
    }
    let mut outputs = vec![("momentum".to_owned(), Tensor::new(momenta.as_slice(), &Device::Cpu)?)];
    for (name, weights) in names.iter().zip(&weights) {
        outputs.push((format!("teacher/{name}"), Tensor::stack(weights, 0)?));
    }
    Ok(outputs)
}

/// The whole loop over a norm between two fixed layers.
pub(crate) fn fstta_fast(case: &Case) -> Result<Outputs> {
    let var = |name: &str| Var::from_tensor(&case.input(&format!("weight/layer_norm.{name}"))?);
    let vars = [("weight", var("weight")?), ("bias", var("bias")?)];
    let param =
        |(name, var): &(&str, Var)| Param::new(format!("layer_norm.{name}"), var.clone(), Anchor::None);
    let params = Params::from_params(vars.iter().map(param)).map_err(wrap)?;
    let number = |option: &str| case.number(&format!("/{option}"));
    let options = FastOptions {
        every: number("every")? as usize,
        lr: number("lr")?,
        momentum: number("momentum")?,
        threshold: number("threshold")?,
        low: number("low")?,
        high: number("high")?,
        beta1: number("optimizer/betas/0")?,
        beta2: number("optimizer/betas/1")?,
        weight_decay: number("optimizer/weight_decay")?,
    };
    let chosen = norms(&params).map_err(wrap)?;
    let mut fast = FastWeights::new(&chosen, options, Constraint::None).map_err(wrap)?;
    let [weight, bias] = vars.each_ref().map(|(_, var)| var.as_tensor().clone());
    let norm = LayerNorm::new(weight, bias, number("layer_norm_eps")?);
    let (mut numbers, mut tensors) = (vec![Vec::new(); 3], vec![Vec::new(); 4]);
    for step in 0..number("steps")? as usize {
        let body = case.input("x")?.get(step)?.matmul(&case.input("body")?.t()?)?;
        let logits = norm.forward(&body)?.matmul(&case.input("head")?.t()?)?;
        let grads = entropy(&logits)?.backward()?;
        for (all, (name, var)) in tensors.iter_mut().zip(&vars) {
            let Some(grad) = grads.get(var) else { candle_core::bail!("no gradient of `{name}`") };
            all.push(grad.clone());
        }
        let info = fast.step(&logits).map_err(wrap)?;
        numbers[0].push(info.entropy);
        numbers[1].push(info.lr.unwrap_or(number("lr")?));
        numbers[2].push(fast.variance().unwrap_or(-1.0));
        for (all, (_, var)) in tensors[2..].iter_mut().zip(&vars) {
            all.push(var.copy()?);
        }
    }
    let names = ["gradient/layer_norm.weight", "gradient/layer_norm.bias"];
    let names = names.into_iter().chain(["weight/layer_norm.weight", "weight/layer_norm.bias"]);
    let mut outputs = Outputs::new();
    for (name, tensors) in names.zip(&tensors) {
        outputs.push((name.to_owned(), Tensor::stack(tensors, 0)?));
    }
    for (name, numbers) in ["loss", "lr", "variance"].into_iter().zip(&numbers) {
        outputs.push((name.to_owned(), Tensor::new(numbers.as_slice(), &Device::Cpu)?));
    }
    Ok(outputs)
}

/// All weights are one vector; the way that the fast ones have gone, by its formula, is in the file too.
pub(crate) fn fstta_slow(case: &Case) -> Result<Outputs> {
    let names = case.names("slow");
    let together = |prefix: &str| {
        let parts = names.iter().map(|name| case.input(&format!("{prefix}/{name}")));
        Tensor::cat(&parts.collect::<Result<Vec<_>>>()?, D::Minus1)?.to_dtype(DType::F64)
    };
    let (slow, states) = (together("slow")?, together("states")?.to_vec2::<f64>()?);
    let decay = case.number("/decay")?;
    let gradient =
        slow_gradient(&numbers(&slow)?, &states, decay, SlowDirection::Reciprocal).map_err(wrap)?;
    let shares: Vec<f64> = (0..states.len()).rev().map(|age| decay.powi(age as i32)).collect();
    let all: f64 = shares.iter().sum();
    let mean = (Tensor::new(shares.as_slice(), &Device::Cpu)?.unsqueeze(0)? / all)?
        .matmul(&together("states")?)?
        .squeeze(0)?;
    let vectors = [
        ("gradient", Tensor::from_vec(gradient, slow.shape(), &Device::Cpu)?),
        ("reference", (&slow - mean)?),
    ];
    let mut outputs = Outputs::new();
    for (prefix, vector) in vectors {
        let mut at = 0;
        for name in &names {
            let like = case.input(&format!("slow/{name}"))?;
            let own = vector.narrow(0, at, like.elem_count())?.to_dtype(like.dtype())?;
            outputs.push((format!("{prefix}/{name}"), own));
            at += like.elem_count();
        }
    }
    Ok(outputs)
}
