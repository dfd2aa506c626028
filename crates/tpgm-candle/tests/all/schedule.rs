//! Schedules against numbers worked out by hand and from PyTorch's formulas.
#![allow(clippy::unwrap_used)]

use tpgm_candle::{Anneal, Schedule};

fn check(schedule: &Schedule, expected: &[(u64, f64)]) {
    schedule.validate().unwrap();
    for &(step, expected) in expected {
        let lr = schedule.lr(step);
        assert!((lr - expected).abs() <= 1e-14 * expected.abs().max(1e-3), "step {step}: {lr} {expected}");
    }
}

#[test]
fn constant_and_linear() {
    check(&Schedule::constant(0.1), &[(0, 0.1), (1000, 0.1)]);
    check(&Schedule::linear(1.0, 0.2, 4), &[(0, 1.0), (1, 0.8), (2, 0.6), (3, 0.4), (4, 0.2), (9, 0.2)]);
}

#[test]
fn cosine_is_pytorchs() {
    // torch.optim.lr_scheduler.CosineAnnealingLR(T_max=10, eta_min=0.01), lr 0.1:
    // 0.01 + 0.09 * (1 + cos(pi * t / 10)) / 2
    let expected = [
        (0, 0.1),
        (1, 0.09779754323328191),
        (2, 0.09140576474687263),
        (5, 0.055),
        (9, 0.012202456766718092),
        (10, 0.01),
        (25, 0.01),
    ];
    check(&Schedule::cosine(0.1, 10).min_lr(0.01), &expected);
}

#[test]
fn one_cycle_is_pytorchs() {
    // torch.optim.lr_scheduler.OneCycleLR(max_lr=0.1, total_steps=10): with a(x, y, p) = y + (x - y) * (1 + cos(pi * p)) / 2,
    // a(0.004, 0.1, t / 2) up to t = 0.3 * 10 - 1 = 2, then a(0.1, 4e-7, (t - 2) / 7)
    let expected = [
        (0, 0.004),
        (1, 0.052),
        (2, 0.1),
        (3, 0.09504846320134738),
        (4, 0.0811745653949763),
        (5, 0.06112620219362893),
        (6, 0.03887419780637107),
        (7, 0.0188258346050237),
        (8, 0.004951936798652629),
        (9, 4e-7),
        (50, 4e-7),
    ];
    check(&Schedule::one_cycle(0.1, 10), &expected);
    // OneCycleLR(max_lr=1, total_steps=12, pct_start=0.25, div_factor=10, final_div_factor=100, anneal_strategy="linear"):
    // 0.1 + 0.9 * t / 2 up to t = 2, then 1 - 0.999 * (t - 2) / 9
    let linear = Schedule::one_cycle(1.0, 12).cycle(0.25, 0.1, 0.001, Anneal::Linear);
    check(&linear, &[(0, 0.1), (1, 0.55), (2, 1.0), (3, 0.889), (7, 0.445), (11, 0.001)]);
    // Degenerate lengths and shares give numbers all the same.
    for (steps, share) in [(1, 0.3), (2, 0.3), (3, 1.0), (5, 0.0), (5, 1.0)] {
        let schedule = Schedule::one_cycle(1.0, steps).cycle(share, 0.1, 0.001, Anneal::Cosine);
        schedule.validate().unwrap();
        assert!((0..8).all(|step| (0.0..=1.0).contains(&schedule.lr(step))), "{steps} {share}");
    }
}

#[test]
fn steps() {
    // StepLR(step_size=3, gamma=0.1) and MultiStepLR(milestones=[2, 5], gamma=0.5)
    check(&Schedule::step(1.0, 3, 0.1), &[(0, 1.0), (2, 1.0), (3, 0.1), (5, 0.1), (6, 0.01)]);
    check(
        &Schedule::multi_step(1.0, [2, 5], 0.5),
        &[(0, 1.0), (1, 1.0), (2, 0.5), (4, 0.5), (5, 0.25), (99, 0.25)],
    );
}

#[test]
fn warm_up_comes_first() {
    let expected = [(0, 0.25), (1, 0.5), (2, 0.75), (3, 1.0), (5, 0.5), (7, 0.0), (8, 0.0)];
    check(&Schedule::linear(1.0, 0.0, 7).warmup(3), &expected);
    // Half of the way from step 3 to step 7: half of the learning rate.
    check(&Schedule::cosine(1.0, 7).warmup(3), &[(0, 0.25), (3, 1.0), (5, 0.5), (7, 0.0)]);
    check(&Schedule::constant(1.0).warmup(1), &[(0, 0.5), (1, 1.0)]);
    check(&Schedule::multi_step(1.0, [4], 0.1).warmup(3), &[(2, 0.75), (3, 1.0), (4, 0.1)]);
}

#[test]
fn mistakes_are_named() {
    for (schedule, option) in [
        (Schedule::constant(-1.0), "lr"),
        (Schedule::constant(f64::NAN), "lr"),
        (Schedule::linear(1.0, -0.1, 3), "end_lr"),
        (Schedule::cosine(1.0, 0), "steps"),
        (Schedule::cosine(1.0, 5).warmup(5), "steps"),
        (Schedule::cosine(1.0, 5).min_lr(f64::INFINITY), "min_lr"),
        (Schedule::one_cycle(1.0, 5).warmup(1), "warmup"),
        (Schedule::one_cycle(1.0, 5).cycle(1.5, 0.1, 0.1, Anneal::Cosine), "warm_share"),
        (Schedule::step(1.0, 0, 0.5), "every"),
        (Schedule::step(1.0, 2, 1.5), "factor"),
        (Schedule::multi_step(1.0, [3, 3], 0.5), "milestones"),
    ] {
        let error = schedule.validate().unwrap_err().to_string();
        assert!(error.contains(&format!("`Schedule {option}`")), "{error}");
    }
}

#[test]
fn a_schedule_survives_json() {
    let schedules = [
        Schedule::cosine(1e-3, 1000).warmup(10).min_lr(1e-5),
        Schedule::one_cycle(0.1, 77).cycle(0.2, 0.1, 0.01, Anneal::Linear),
        Schedule::multi_step(0.1, [3, 9], 0.1),
    ];
    for schedule in schedules {
        let json = serde_json::to_string(&schedule).unwrap();
        let back: Schedule = serde_json::from_str(&json).unwrap();
        assert_eq!(serde_json::to_string(&back).unwrap(), json);
        assert!((0..100).all(|step| (back.lr(step) - schedule.lr(step)).abs() < 1e-18));
    }
}
