//! Whole trajectories of the published code, with candle's forward and backward pass.
#![allow(clippy::unwrap_used)]

use crate::common::{Case, Model, cases, numbers};
use tpgm_candle::core::RadiusAdam;
use tpgm_candle::{
    AdamW, AuditPolicy, Constraint, Ftp, Norm, RobustOptimizer, Rule, Sgd, Spd, TensorScalars, Tpgm,
    TpgmConfig,
};

#[test]
fn ftp_with_adam() {
    cases("ftp_adamp").iter().for_each(|case| run_steps(case, adamw(case), ftp(case)));
}

#[test]
fn ftp_with_sgd() {
    cases("ftp_sgdp").iter().for_each(|case| run_steps(case, sgd(case), ftp(case)));
}

#[test]
fn spd_with_adam() {
    for case in cases("adam_spd") {
        // The weight decay of the published code is SPD's strength.
        let lambda = case.number(&case.json["optimizer"]["weight_decay"]);
        let Rule::AdamW(rule) = adamw(&case) else { unreachable!() };
        let spd = Spd { strength: lambda };
        run_steps(&case, AdamW { weight_decay: 0.0, ..rule }.into(), spd.into());
    }
}

#[test]
fn tpgm_beside_an_optimizer() {
    for case in cases("tpgm") {
        let model = case.model("round1/start");
        let mut tpgm = Tpgm::new(&model.params, tpgm_config(&case)).unwrap();
        run_tpgm(&case, &model, |call| {
            let losses = match call {
                Call::Project => tpgm.project().map(|()| Vec::new()),
                Call::Update(n, loss) => tpgm.update_n(n, loss),
            };
            (losses.unwrap(), tpgm.scalars().unwrap())
        });
    }
}

#[test]
fn tpgm_joined_with_an_optimizer() {
    for case in cases("tpgm") {
        let model = case.model("round1/start");
        let mut opt = RobustOptimizer::new(&model.params, AdamW::default(), tpgm_config(&case)).unwrap();
        run_tpgm(&case, &model, |call| {
            let mut tpgm = opt.tpgm().unwrap();
            let losses = match call {
                Call::Project => tpgm.project().map(|()| Vec::new()),
                Call::Update(n, loss) => tpgm.update_n(n, loss),
            };
            (losses.unwrap(), opt.scalars().unwrap())
        });
    }
}

fn run_steps(case: &Case, rule: Rule, constraint: Constraint) {
    let model = case.model("start");
    let unused = model.vars.keys().filter(|name| name.as_str() == "unused.weight").cloned().collect();
    let mut opt = RobustOptimizer::builder(&model.params)
        .rule(rule)
        .constraint(constraint)
        .audit(AuditPolicy::Except(unused))
        .build()
        .unwrap();
    let rates = numbers(case.get("lr"));
    for (i, lr) in rates.iter().enumerate() {
        let prefix = format!("step{:02}", i + 1);
        opt.set_learning_rate(*lr);
        let info = opt.backward_step(&case.loss(&model, i).unwrap()).unwrap();
        case.compare(&format!("{prefix}/loss"), &[info.loss.unwrap()]);
        assert_eq!(model.compare(case, &format!("{prefix}/weight")), model.vars.len());
        for (name, scalars) in opt.scalars().unwrap() {
            let optional = |part: &str, value: f64| {
                let key = format!("{prefix}/{part}/{name}");
                if case.find(&key).is_some() {
                    case.compare(&key, &[value]);
                }
            };
            optional("gamma", scalars.radius);
            optional("gamma_m", scalars.radius_m);
            optional("gamma_v", scalars.radius_v);
            optional("gamma_grad", scalars.radius_grad);
            optional("alignment", scalars.alignment);
        }
    }
    assert_eq!(rates.len(), opt.steps() as usize);
    assert!(rates.len() > 5);
    let state = opt.state().unwrap();
    for name in model.vars.keys() {
        for slot in ["exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer"] {
            if case.find(&format!("final/{slot}/{name}")).is_some() {
                case.compare(&format!("final/{slot}/{name}"), &state[&format!("{name}/{slot}")].to_f64());
            }
        }
    }
}

enum Call<'a> {
    Project,
    Update(usize, &'a mut dyn FnMut(usize) -> candle_core::Result<candle_core::Tensor>),
}

fn run_tpgm(
    case: &Case,
    model: &Model,
    mut trainer: impl FnMut(Call<'_>) -> (Vec<f64>, Vec<(String, TensorScalars)>),
) {
    let mut batch = 0;
    for (r, round) in (1..).zip(case.json["rounds"].as_array().unwrap()) {
        for (name, var) in &model.vars {
            var.set(case.get(&format!("round{r}/start/{name}"))).unwrap();
        }
        let iterations = round["iters"].as_u64().unwrap() as usize;
        let (losses, scalars) = match iterations {
            0 => trainer(Call::Project),
            n => trainer(Call::Update(n, &mut |i| {
                assert!(model.compare(case, &format!("round{r}/iter{:02}/weight", i + 1)) > 0);
                case.loss(model, batch + i)
            })),
        };
        batch += iterations;
        assert_eq!(losses.len(), iterations);
        for (i, loss) in losses.iter().enumerate() {
            case.compare(&format!("round{r}/iter{:02}/loss", i + 1), &[*loss]);
        }
        assert_eq!(model.compare(case, &format!("round{r}/weight")), model.vars.len());
        let learned = |name: &str| case.find(&format!("round{r}/apply/gamma_used/{name}")).is_some();
        assert!(scalars.iter().any(|(name, _)| learned(name)));
        for (name, scalars) in scalars.iter().filter(|(name, _)| learned(name)) {
            case.compare(&format!("round{r}/apply/gamma_used/{name}"), &[scalars.radius]);
            if iterations > 0 {
                let last = format!("round{r}/iter{iterations:02}");
                case.compare(&format!("{last}/gamma_m/{name}"), &[scalars.radius_m]);
                case.compare(&format!("{last}/gamma_v/{name}"), &[scalars.radius_v]);
            }
        }
    }
}

fn adamw(case: &Case) -> Rule {
    let json = &case.json["optimizer"];
    AdamW {
        lr: case.number(&json["lr"]),
        beta1: case.number(&json["betas"][0]),
        beta2: case.number(&json["betas"][1]),
        eps: case.number(&json["eps"]),
        weight_decay: case.number(&json["weight_decay"]),
        amsgrad: json["amsgrad"].as_bool().unwrap(),
        ..AdamW::default()
    }
    .into()
}

fn sgd(case: &Case) -> Rule {
    let json = &case.json["optimizer"];
    Sgd {
        lr: case.number(&json["lr"]),
        momentum: case.number(&json["momentum"]),
        dampening: case.number(&json["dampening"]),
        nesterov: json["nesterov"].as_bool().unwrap(),
        weight_decay: case.number(&json["weight_decay"]),
        ..Sgd::default()
    }
    .into()
}

fn ftp(case: &Case) -> Constraint {
    Ftp { k: case.number(&case.json["ftp"]["k"]), ..Ftp::default() }.into()
}

fn tpgm_config(case: &Case) -> TpgmConfig {
    let json = &case.json["adam"];
    TpgmConfig {
        norm: if case.json["norm"] == "l2" { Norm::L2 } else { Norm::Mars },
        adam: RadiusAdam {
            lr: case.number(&case.json["proj_lr"]),
            beta1: case.number(&json["betas"][0]),
            beta2: case.number(&json["betas"][1]),
            eps: case.number(&json["eps"]),
        },
    }
}
