//! Optimizer cases: FTP and SPD.

use super::case::{AnchorSource, OptimizerConfig, field_error, required};
use super::compare::{Comparer, Presence};
use super::error::GoldenError;
use super::run::{Context, value};
use super::subject::{OptimizerSubject, Quantity};
use crate::constraint::{Constraint, Ftp, FtpMemory, RADIUS_FLOOR, RadiusAdam, Spd};
use crate::oracle::largest;
use crate::rule::{AdamW, Rule, Sgd};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Method {
    FtpAdam,
    FtpSgd,
    AdamSpd,
}

pub(super) fn run<'a>(context: &Context<'a>, method: Method) -> Result<Comparer<'a>, GoldenError> {
    let (case, file, params) = (context.case, context.file, context.params());
    let steps = required(case.steps, context.json, "steps")?;
    let config = required(case.optimizer, context.json, "optimizer")?;
    let rule = rule(context, method, &config)?;
    let constraint = constraint(context, method, &config)?;
    let zero_anchor = case.anchor == Some(AnchorSource::Zeros);
    let set = context.set(zero_anchor)?;
    let mut optimizer =
        context.subject("new optimizer", context.subject.optimizer(&set, rule, constraint))?;

    let anchors: Vec<Option<Vec<f64>>> = if zero_anchor {
        vec![None; params.len()]
    } else {
        file.get_params("anchor", params)?.into_iter().map(Some).collect()
    };
    let mut weights = file.get_params("start", params)?;
    let rates = file.learning_rates(steps)?;
    let mut evaluator = context.evaluator()?;
    let mut comparer = Comparer::new(file);
    let mut stepped = vec![false; params.len()];
    for (s, &lr) in (1..).zip(rates) {
        let prefix = format!("step{s:02}");
        let grads = match &mut evaluator {
            None => {
                file.skip(&format!("{prefix}/loss"));
                let grad = |param: &super::model::Param| match param.trainable {
                    true => file.find_param(&format!("{prefix}/grad"), param),
                    false => Ok(None),
                };
                params.iter().map(grad).collect::<Result<Vec<_>, _>>()?
            }
            Some(evaluator) => {
                let (loss, mut grads) = evaluator.next(&weights);
                comparer.check("loss", &format!("{prefix}/loss"), value(&[loss]), Presence::Required)?;
                for (param, grad) in params.iter().zip(&mut grads) {
                    if !param.trainable {
                        *grad = None;
                    }
                    let name = format!("{prefix}/grad/{}", param.name);
                    comparer.check("grad", &name, grad.clone().into(), Presence::AsComputed)?;
                }
                grads
            }
        };
        let result = optimizer.step(&mut weights, &grads, &anchors, lr);
        context.subject(&prefix, result)?;
        for (i, param) in params.iter().enumerate() {
            let mut check = |quantity, part: &'static str, presence| {
                let name = format!("{prefix}/{part}/{}", param.name);
                let observed = context.subject(&name, optimizer.observe(i, quantity))?;
                comparer.check(part, &name, observed, presence)
            };
            if grads[i].is_some() {
                stepped[i] = true;
                if method != Method::AdamSpd {
                    check(Quantity::Update, "update", Presence::Required)?;
                }
                if param.constrained() && method == Method::AdamSpd {
                    check(Quantity::Alignment, "alignment", Presence::Required)?;
                    check(Quantity::SpdRatio, "ratio", Presence::AsComputed)?;
                }
                if param.constrained() && method != Method::AdamSpd {
                    check(Quantity::Radius, "gamma", Presence::Required)?;
                    if s > 1 {
                        check(Quantity::RadiusGradRaw, "gamma_grad_raw", Presence::Required)?;
                        check(Quantity::RadiusGrad, "gamma_grad", Presence::Required)?;
                        check(Quantity::RadiusM, "gamma_m", Presence::Required)?;
                        check(Quantity::RadiusV, "gamma_v", Presence::Required)?;
                        check(Quantity::RadiusUnclipped, "gamma_unclipped", Presence::Required)?;
                    }
                    check(Quantity::Norms, "norm", Presence::Required)?;
                    let name = format!("{prefix}/norm/{}", param.name);
                    let norm = context.subject(&name, optimizer.observe(i, Quantity::LargestNorm))?;
                    comparer.check_reduced("largest norm", &name, norm, largest)?;
                }
            }
            let name = format!("{prefix}/weight/{}", param.name);
            comparer.check("weight", &name, value(&weights[i]), Presence::Required)?;
        }
    }
    check_final(context, &mut comparer, optimizer.as_ref(), &rule, &weights, &stepped)?;
    Ok(comparer)
}

/// The state after the last step, of the tensors that took one.
fn check_final(
    context: &Context<'_>,
    comparer: &mut Comparer<'_>,
    optimizer: &dyn OptimizerSubject,
    rule: &Rule,
    weights: &[Vec<f64>],
    stepped: &[bool],
) -> Result<(), GoldenError> {
    for (i, param) in context.params().iter().enumerate() {
        let name = format!("final/weight/{}", param.name);
        comparer.check("weight", &name, value(&weights[i]), Presence::Required)?;
        if !stepped[i] {
            continue;
        }
        let mut slots: Vec<(Quantity, &'static str)> = Vec::new();
        match rule {
            Rule::AdamW(rule) => {
                slots.push((Quantity::ExpAvg, "exp_avg"));
                slots.push((Quantity::ExpAvgSq, "exp_avg_sq"));
                if rule.amsgrad {
                    slots.push((Quantity::MaxExpAvgSq, "max_exp_avg_sq"));
                }
            }
            Rule::Sgd(rule) if rule.momentum != 0.0 => {
                slots.push((Quantity::MomentumBuffer, "momentum_buffer"));
            }
            Rule::Sgd(_) => {}
        }
        if context.case.ftp.is_some() && param.constrained() {
            slots.push((Quantity::Radius, "gamma"));
        }
        for (quantity, part) in slots {
            let name = format!("final/{part}/{}", param.name);
            let observed = context.subject(&name, optimizer.observe(i, quantity))?;
            comparer.check(part, &name, observed, Presence::Required)?;
        }
    }
    Ok(())
}

fn rule(context: &Context<'_>, method: Method, config: &OptimizerConfig) -> Result<Rule, GoldenError> {
    let field = |name: &str| format!("optimizer.{name}");
    let refuse = |given: bool, name: &str| match given {
        true => Err(field_error(context.json, &field(name), "does not belong to this method")),
        false => Ok(()),
    };
    // SPD's strength travels under the name of the weight decay, which the rule itself does not have.
    let weight_decay = match method {
        Method::AdamSpd => 0.0,
        _ => config.weight_decay,
    };
    match method {
        Method::FtpAdam | Method::AdamSpd => {
            refuse(config.momentum.is_some(), "momentum")?;
            refuse(config.dampening.is_some(), "dampening")?;
            refuse(config.nesterov.is_some(), "nesterov")?;
            let [beta1, beta2] = required(config.betas, context.json, &field("betas"))?;
            Ok(Rule::AdamW(AdamW {
                lr: config.lr,
                beta1,
                beta2,
                eps: required(config.eps, context.json, &field("eps"))?,
                weight_decay,
                amsgrad: config.amsgrad.unwrap_or(false),
                ..AdamW::default()
            }))
        }
        Method::FtpSgd => {
            refuse(config.betas.is_some(), "betas")?;
            refuse(config.eps.is_some(), "eps")?;
            refuse(config.amsgrad.is_some(), "amsgrad")?;
            Ok(Rule::Sgd(Sgd {
                lr: config.lr,
                momentum: required(config.momentum, context.json, &field("momentum"))?,
                dampening: config.dampening.unwrap_or(0.0),
                nesterov: config.nesterov.unwrap_or(false),
                weight_decay,
                ..Sgd::default()
            }))
        }
    }
}

fn constraint(
    context: &Context<'_>,
    method: Method,
    config: &OptimizerConfig,
) -> Result<Constraint, GoldenError> {
    if method == Method::AdamSpd {
        return Ok(Constraint::Spd(Spd { strength: config.weight_decay }));
    }
    let ftp = required(context.case.ftp, context.json, "ftp")?;
    if ftp.gamma_init != RADIUS_FLOOR {
        let problem = format!("is {}, but FTP starts at {RADIUS_FLOOR}", ftp.gamma_init);
        return Err(field_error(context.json, "ftp.gamma_init", problem));
    }
    Ok(Constraint::Ftp(Ftp {
        k: ftp.k,
        adam: RadiusAdam {
            lr: ftp.gamma_lr,
            beta1: ftp.gamma_betas[0],
            beta2: ftp.gamma_betas[1],
            eps: ftp.gamma_eps,
        },
        memory: FtpMemory::Exact,
    }))
}
