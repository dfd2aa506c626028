//! What fine-tuning forgets, and what constraints keep, on generated data: `cargo run --release --example forget_less`.
//!
//! A small network is trained on ten classes seen in six domains. Then the classes shift, and it is fine-tuned on a few
//! samples from the first domain only. The table shows accuracy on fresh samples of the shifted classes: in the
//! fine-tuning domain (ID) and in the five others (OOD). The domains lie far enough apart for plain AdamW to forget.
//!
//! WiSE-FT interpolates the result of plain AdamW. Learning rate, steps and data sizes are constants, the same for every
//! method. A method with a strength tries those listed, strongest first, and keeps the first with the best accuracy on
//! held-out samples of the fine-tuning domain.
#![allow(clippy::print_stdout, reason = "an example talks to its user")]

use std::time::Instant;

use tpgm_core::weight_space::{WiseEntry, WiseFt};
use tpgm_core::{
    AdamW, Constraint, Cpu, DType, FixedRadius, Ftp, L2Sp, Optimizer, ParamSet, Projection, Result, Spd,
    StepOptions, TensorIo, Tpgm,
};

const CLASSES: usize = 10;
const DOMAINS: usize = 6;
const CONTENT: usize = 8;
const INPUT: usize = 24;
const HIDDEN: usize = 64;
const SEEDS: u64 = 5;

/// Weights, gradients or anchors: `fc1.weight`, `fc1.bias`, `fc2.weight`, `fc2.bias`.
type Tensors = Vec<Vec<f32>>;

/// SplitMix64.
struct Rng(u64);

impl Rng {
    fn uniform(&mut self) -> f32 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((x ^ (x >> 31)) >> 40) as f32 / (1u32 << 24) as f32
    }

    fn below(&mut self, n: usize) -> usize {
        ((self.uniform() * n as f32) as usize).min(n - 1)
    }

    fn normal(&mut self) -> f32 {
        let radius = (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
        radius * (std::f32::consts::TAU * self.uniform()).cos()
    }

    fn normals(&mut self, n: usize, scale: f32) -> Vec<f32> {
        (0..n).map(|_| scale * self.normal()).collect()
    }
}

/// Inputs and their classes.
type Data = Vec<(Vec<f32>, usize)>;

/// Classes are Gaussian clusters of content; a domain is a fixed linear map from content to input.
struct World {
    centers: Tensors,
    shifts: Tensors,
    domains: Tensors,
}

impl World {
    fn new(rng: &mut Rng) -> Self {
        let shared = rng.normals(INPUT * CONTENT, 1.0);
        let mut domain = || {
            let own = rng.normals(INPUT * CONTENT, 1.0);
            shared.iter().zip(own).map(|(s, o)| (s + 2.0 * o) / (5.0 * CONTENT as f32).sqrt()).collect()
        };
        let domains = (0..DOMAINS).map(|_| domain()).collect();
        let mut clusters = |scale| (0..CLASSES).map(|_| rng.normals(CONTENT, scale)).collect();
        Self { centers: clusters(1.0), shifts: clusters(0.5), domains }
    }

    fn sample(&self, rng: &mut Rng, n: usize, domains: std::ops::Range<usize>, shifted: bool) -> Data {
        let shift = if shifted { 1.0 } else { 0.0 };
        let mut one = |i: usize| {
            let (class, domain) = (i % CLASSES, domains.start + rng.below(domains.len()));
            let (center, offset) = (&self.centers[class], &self.shifts[class]);
            let content: Vec<f32> =
                center.iter().zip(offset).map(|(c, o)| c + shift * o + 0.5 * rng.normal()).collect();
            let map = self.domains[domain].chunks_exact(CONTENT);
            (map.map(|row| dot(row, &content) + 0.1 * rng.normal()).collect(), class)
        };
        (0..n).map(&mut one).collect()
    }
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn add_scaled(to: &mut [f32], factor: f32, from: &[f32]) {
    to.iter_mut().zip(from).for_each(|(to, from)| *to += factor * from);
}

fn dense(weight: &[f32], bias: &[f32], x: &[f32]) -> Vec<f32> {
    weight.chunks_exact(x.len()).zip(bias).map(|(row, b)| dot(row, x) + b).collect()
}

/// Activations of the hidden layer (ReLU), and logits.
fn forward(w: &Tensors, x: &[f32]) -> (Vec<f32>, Vec<f32>) {
    let mut hidden = dense(&w[0], &w[1], x);
    hidden.iter_mut().for_each(|h| *h = h.max(0.0));
    let logits = dense(&w[2], &w[3], &hidden);
    (hidden, logits)
}

/// Gradient of the mean cross-entropy over a random batch.
fn gradient(w: &Tensors, data: &Data, batch: usize, rng: &mut Rng) -> Tensors {
    let mut grads: Tensors = w.iter().map(|tensor| vec![0.0; tensor.len()]).collect();
    for _ in 0..batch {
        let (x, class) = &data[rng.below(data.len())];
        let (hidden, logits) = forward(w, x);
        let top = logits.iter().copied().fold(f32::MIN, f32::max);
        let shares: Vec<f32> = logits.iter().map(|l| (l - top).exp()).collect();
        let total: f32 = shares.iter().sum();
        let mut below = vec![0.0; HIDDEN];
        for (c, share) in shares.iter().enumerate() {
            let error = (share / total - f32::from(u8::from(c == *class))) / batch as f32;
            let row = c * HIDDEN..(c + 1) * HIDDEN;
            add_scaled(&mut below, error, &w[2][row.clone()]);
            add_scaled(&mut grads[2][row], error, &hidden);
            grads[3][c] += error;
        }
        for (j, error) in below.into_iter().enumerate().filter(|&(j, _)| hidden[j] > 0.0) {
            add_scaled(&mut grads[0][j * INPUT..(j + 1) * INPUT], error, x);
            grads[1][j] += error;
        }
    }
    grads
}

/// Percent of samples whose largest logit is that of their class.
fn accuracy(w: &Tensors, data: &Data) -> f64 {
    let right = data.iter().filter(|(x, class)| {
        let (_, logits) = forward(w, x);
        logits.iter().all(|&l| l <= logits[*class])
    });
    100.0 * right.count() as f64 / data.len() as f64
}

/// L2 norm of the displacement of all tensors.
fn distance(w: &Tensors, anchors: &Tensors) -> f64 {
    let pairs = w.iter().flatten().zip(anchors.iter().flatten());
    pairs.map(|(w, a)| f64::from(w - a).powi(2)).sum::<f64>().sqrt()
}

/// The operands of a call; gradients where there are any.
fn io<'a>(w: &'a mut Tensors, grads: &'a [Vec<f32>], anchors: &'a Tensors) -> Vec<TensorIo<'a, Cpu>> {
    let mut grads = grads.iter();
    let operands = w.iter_mut().zip(anchors);
    let with = |io: TensorIo<'a, Cpu>, grad: Option<&'a Vec<f32>>| match grad {
        Some(grad) => io.grad(grad),
        None => io,
    };
    operands.map(|(w, a)| with(TensorIo::new(w).anchor(a), grads.next())).collect()
}

/// Trains from `anchors`. Returns the weights and milliseconds per step, forward and backward included.
fn train(
    anchors: &Tensors,
    constraint: Constraint,
    (data, held_out): (&Data, &Data),
    (steps, batch): (usize, usize),
) -> Result<(Tensors, f64)> {
    let set = ParamSet::builder()
        .tensor("fc1.weight", [HIDDEN, INPUT], DType::F32)
        .tensor("fc1.bias", [HIDDEN], DType::F32)
        .tensor("fc2.weight", [CLASSES, HIDDEN], DType::F32)
        .tensor("fc2.bias", [CLASSES], DType::F32)
        .build()?;
    let mut optimizer = Optimizer::new(Cpu::new(), &set, AdamW::default().lr(3e-3), constraint)?;
    // TPGM's projection comes with the update of its radii.
    let options = StepOptions { projection: Projection::Defer, ..StepOptions::default() };
    let (mut w, mut rng) = (anchors.clone(), Rng(1));
    let start = Instant::now();
    for _ in 0..steps {
        let grads = gradient(&w, data, batch, &mut rng);
        optimizer.step(&mut io(&mut w, &grads, anchors), &options)?;
        if let Some(projector) = optimizer.projector_mut() {
            projector.begin(&mut io(&mut w, &[], anchors))?;
            projector.apply(&mut io(&mut w, &[], anchors))?;
            let grads = gradient(&w, held_out, batch, &mut rng);
            projector.update(&mut io(&mut w, &grads, anchors))?;
            projector.finish(&mut io(&mut w, &[], anchors))?;
        }
    }
    Ok((w, start.elapsed().as_secs_f64() * 1e3 / steps as f64))
}

/// The methods, each with its settings to choose from.
fn methods() -> Vec<(&'static str, Vec<Constraint>)> {
    let l2sp = |alpha| L2Sp { alpha, ..L2Sp::default() }.into();
    let radius = |radius| FixedRadius { radius, ..FixedRadius::default() }.into();
    let spd = |strength| Spd { strength }.into();
    let ftp = |k| Ftp { k, ..Ftp::default() }.into();
    vec![
        ("AdamW", vec![Constraint::None]),
        ("+ L2-SP", [1.0, 0.1, 0.01].map(l2sp).to_vec()),
        ("+ fixed radius", [0.5, 1.0, 2.0, 4.0, 8.0].map(radius).to_vec()),
        ("+ SPD", [2.0, 1.0, 0.5].map(spd).to_vec()),
        ("+ FTP", [1.0, 0.5, 0.0].map(ftp).to_vec()),
        ("+ TPGM", vec![Tpgm::default().into()]),
    ]
}

/// ID accuracy, OOD accuracy, distance from the anchor, milliseconds per step.
type Row = [f64; 4];

/// All methods on one generated world.
fn run(seed: u64) -> Result<Vec<(&'static str, Row)>> {
    let mut rng = Rng(seed);
    let world = World::new(&mut rng);
    let broad = world.sample(&mut rng, 20_000, 0..DOMAINS, false);
    let tune = world.sample(&mut rng, 100, 0..1, true);
    let held_out = world.sample(&mut rng, 200, 0..1, true);
    let id = world.sample(&mut rng, 2_000, 0..1, true);
    let ood = world.sample(&mut rng, 5_000, 1..DOMAINS, true);

    let random = vec![
        rng.normals(HIDDEN * INPUT, (2.0 / INPUT as f32).sqrt()),
        vec![0.0; HIDDEN],
        rng.normals(CLASSES * HIDDEN, (1.0 / HIDDEN as f32).sqrt()),
        vec![0.0; CLASSES],
    ];
    let (anchors, ms) = train(&random, Constraint::None, (&broad, &broad), (1000, 64))?;
    let row = |w: &Tensors, ms| [accuracy(w, &id), accuracy(w, &ood), distance(w, &anchors), ms];

    let mut rows = vec![("pre-trained", row(&anchors, ms))];
    for (name, settings) in methods() {
        let mut best: Option<(f64, Tensors, f64)> = None;
        for constraint in settings {
            let (w, ms) = train(&anchors, constraint, (&tune, &held_out), (300, 32))?;
            let score = accuracy(&w, &held_out);
            if best.as_ref().is_none_or(|(other, ..)| score > *other) {
                best = Some((score, w, ms));
            }
        }
        let Some((_, w, ms)) = best else { continue };
        rows.push((name, row(&w, ms)));
        if name == "AdamW" {
            let mut merged = w.clone();
            let models = anchors.iter().zip(&w).zip(&mut merged);
            let mut entries: Vec<_> =
                models.map(|((a, w), out)| WiseEntry::new("tensor", a, w, out)).collect();
            WiseFt::default().merge(&mut entries)?;
            rows.push(("WiSE-FT 0.5 of it", row(&merged, ms)));
        }
    }
    Ok(rows)
}

fn main() -> Result<()> {
    let runs = (1..=SEEDS).map(run).collect::<Result<Vec<_>>>()?;
    println!("mean ± standard deviation over {SEEDS} generated worlds\n");
    println!("{:<18} {:>13} {:>13} {:>13} {:>8}", "method", "ID %", "OOD %", "distance", "ms/step");
    for (i, (name, _)) in runs[0].iter().enumerate() {
        let column = |c: usize| {
            let mean = runs.iter().map(|run| run[i].1[c]).sum::<f64>() / SEEDS as f64;
            let square = runs.iter().map(|run| (run[i].1[c] - mean).powi(2)).sum::<f64>();
            (mean, (square / (SEEDS - 1) as f64).sqrt())
        };
        let [id, ood, far] = [0, 1, 2].map(|c| {
            let (mean, deviation) = column(c);
            format!("{mean:.1} ± {deviation:.1}")
        });
        println!("{name:<18} {id:>13} {ood:>13} {far:>13} {:>8.3}", column(3).0);
    }
    Ok(())
}
