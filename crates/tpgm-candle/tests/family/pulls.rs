//! Pulls: the gradient that a step sees, by the core's fused pass on the CPU, and where there is an emulator, by the CUDA kernels.

use candle_core::{Result, Tensor};
use tpgm_candle::core::backend::{Backend, TensorIo};
use tpgm_candle::core::{Buffer, Constraint, Cpu, Group, Optimizer, ParamSet, Pull, Sgd, StepOptions};
use tpgm_cuda::{Emulator, Gpu, Reports};

use crate::case::{Case, Outputs};
use crate::gradients::buffer;

/// One parameter: name, weight, anchor (zero without), constraint of its own.
pub(crate) struct Pulled {
    pub(crate) name: String,
    pub(crate) weight: Tensor,
    pub(crate) anchor: Option<Tensor>,
    pub(crate) constraint: Constraint,
    /// Values that the importance is taken from, or what it is.
    pub(crate) importance: Option<Importance>,
}

pub(crate) enum Importance {
    /// The gradient that it is taken from, and what it was before.
    Of { gradient: Tensor, before: Option<Vec<f64>> },
    /// As it is.
    Given(Vec<f64>),
}

/// What a pull adds to the gradient of each parameter, and the importance that it is weighted by: a step of SGD with rate 1 and
/// no gradient moves a weight by just that. All backends at hand must agree; the last one's numbers are returned.
pub(crate) fn pulls(parameters: &[Pulled]) -> Result<Vec<(Tensor, Option<Vec<f64>>)>> {
    let mut results = pulls_on(&Cpu::new(), parameters)?;
    if std::env::var_os("TPGM_EMULATOR").is_some() {
        let emulator = Emulator::from_env().map_err(candle_core::Error::wrap)?;
        let emulated = pulls_on(&Gpu::on(emulator).reports(Reports::AtOnce), parameters)?;
        for ((cpu, _), (other, _)) in results.iter().zip(&emulated) {
            let (cpu, other) = (crate::case::numbers(cpu)?, crate::case::numbers(other)?);
            let close = |(a, b): (&f64, &f64)| (a - b).abs() <= 1e-6 * a.abs().max(1e-3);
            if !cpu.iter().zip(&other).all(close) {
                candle_core::bail!("the kernels give {other:?}, the CPU {cpu:?}");
            }
        }
        results = emulated;
    }
    Ok(results)
}

fn pulls_on<B: Backend + Clone>(
    backend: &B,
    parameters: &[Pulled],
) -> Result<Vec<(Tensor, Option<Vec<f64>>)>> {
    let wrap = |error: tpgm_candle::core::Error| candle_core::Error::wrap(error);
    let mut set = ParamSet::builder();
    for Pulled { name, weight, anchor, constraint, .. } in parameters {
        set = set.tensor(name.as_str(), weight.dims().to_vec(), buffer(weight)?.dtype());
        let group = Group::new(name.as_str()).constraint(*constraint);
        set = set.group(if anchor.is_none() { group.zero_anchor() } else { group });
    }
    let set = set.build().map_err(wrap)?;
    let rule = Sgd { lr: 1.0, momentum: 0.0, ..Sgd::default() };
    let mut optimizer = Optimizer::new(backend.clone(), &set, rule, Constraint::None).map_err(wrap)?;
    let upload = |tensor: &Tensor| backend.upload(&buffer(tensor)?).map_err(wrap);
    let mut weights = parameters.iter().map(|p| upload(&p.weight)).collect::<Result<Vec<_>>>()?;
    let anchors =
        parameters.iter().map(|p| p.anchor.as_ref().map(upload).transpose()).collect::<Result<Vec<_>>>()?;
    let zeros = parameters.iter().map(|p| upload(&p.weight.zeros_like()?)).collect::<Result<Vec<_>>>()?;
    let sources = parameters
        .iter()
        .map(|p| match &p.importance {
            Some(Importance::Of { gradient, .. }) => upload(gradient).map(Some),
            _ => Ok(None),
        })
        .collect::<Result<Vec<_>>>()?;
    for parameter in parameters {
        let given = match &parameter.importance {
            Some(Importance::Given(values) | Importance::Of { before: Some(values), .. }) => Some(values),
            _ => None,
        };
        if let Some(values) = given {
            optimizer.set_importance(&parameter.name, values).map_err(wrap)?;
        }
    }
    if sources.iter().any(Option::is_some) {
        let grads = sources.iter().map(Option::as_ref);
        let mut io = operands::<B>(&mut weights, grads, &anchors);
        optimizer.update_importance(&mut io).map_err(wrap)?;
    }
    let mut io = operands::<B>(&mut weights, zeros.iter().map(Some), &anchors);
    optimizer.step(&mut io, &StepOptions::default()).map_err(wrap)?;
    drop(io);
    parameters
        .iter()
        .zip(&weights)
        .map(|(parameter, moved)| {
            let moved: Buffer = backend.download(moved).map_err(wrap)?;
            let before = crate::case::numbers(&parameter.weight)?;
            let pull: Vec<f64> = before.iter().zip(moved.to_f64()).map(|(w, moved)| w - moved).collect();
            let pull = Tensor::from_vec(pull, parameter.weight.shape(), parameter.weight.device())?;
            let importance = match parameter.importance {
                Some(_) => Some(optimizer.importance(&parameter.name).map_err(wrap)?),
                None => None,
            };
            Ok((pull.to_dtype(parameter.weight.dtype())?, importance))
        })
        .collect()
}

/// The operands of a call.
fn operands<'a, B: Backend>(
    weights: &'a mut [B::Buffer],
    grads: impl Iterator<Item = Option<&'a B::Buffer>>,
    anchors: &'a [Option<B::Buffer>],
) -> Vec<TensorIo<'a, B>> {
    let tensors = weights.iter_mut().zip(grads).zip(anchors);
    tensors
        .map(|((weight, grad), anchor)| TensorIo {
            weight: B::as_mut(weight),
            grad: grad.map(B::as_ref),
            anchor: anchor.as_ref().map(B::as_ref),
            variance: None,
        })
        .collect()
}

/// L2-SP: `alpha / 2` on what has an anchor, `beta / 2` on new layers, nothing on what is left free.
pub(crate) fn l2_sp(case: &Case) -> Result<Outputs> {
    let (alpha, beta) = (case.number("/alpha")?, case.number("/beta")?);
    let mut parameters = Vec::new();
    let (mut start_point, mut new_layers) = (0.0, 0.0);
    for name in case.names("weight") {
        let weight = case.input(&format!("weight/{name}"))?;
        let anchor = case.input(&format!("anchor/{name}")).ok();
        if !case.tensors.contains_key(&format!("grad/penalty/weight/{name}")) {
            continue;
        }
        let strength = if anchor.is_some() { alpha } else { beta };
        let displacement = match &anchor {
            Some(anchor) => (&weight - anchor)?,
            None => weight.clone(),
        };
        let half = crate::case::numbers(&displacement)?.iter().map(|x| x * x).sum::<f64>() / 2.0;
        match anchor {
            Some(_) => start_point += half,
            None => new_layers += half,
        }
        let pull = Pull { anchor_l2: strength, ..Pull::default() };
        let weight = weight.detach();
        parameters.push(Pulled { name, weight, anchor, constraint: pull.into(), importance: None });
    }
    let scalar = |x: f64| Tensor::new(x, &candle_core::Device::Cpu)?.to_dtype(case.dtype());
    let mut outputs: Outputs = vec![("penalty".into(), scalar(alpha * start_point + beta * new_layers)?)];
    let parts = [("start_point", start_point, alpha, true), ("new_layers", new_layers, beta, false)];
    let gradients = pulls(&parameters)?;
    for (parameter, (pull, _)) in parameters.iter().zip(&gradients) {
        outputs.push((format!("grad/penalty/weight/{}", parameter.name), pull.clone()));
        for (part, _, strength, anchored) in parts {
            let key = format!("grad/{part}/weight/{}", parameter.name);
            if case.tensors.contains_key(&key) && parameter.anchor.is_some() == anchored {
                outputs.push((key, (pull / strength)?));
            }
        }
    }
    for (part, value, _, _) in parts {
        if case.tensors.contains_key(&format!("output/{part}")) {
            outputs.push((part.into(), scalar(value)?));
        }
    }
    Ok(outputs)
}
