//! What a device does beside the promises of every backend. Run on the emulator and on GPUs.
#![allow(clippy::unwrap_used, clippy::print_stdout)] // helpers of tests

mod sums;
mod watched;

use std::sync::atomic::Ordering::Relaxed;

use tpgm_core::testing::golden::{BackendSubject, run_folder};
use tpgm_core::{
    AdamW, Backend, Buffer, Constraint, Cpu, DType, Digrap, EngineOptions, Error, FixedRadius, Ftp,
    Gradients, Group, Masters, Norm, Optimizer, ParamSet, Projection, Rule, Sgd, Spd, StateDict, StepOptions,
    TensorIo, Tpgm,
};
use tpgm_cuda::{Device, Gpu, Reports};

pub(crate) use self::sums::{halves_with_f32_anchors_match_the_cpu, sums_are_nearly_exact};
pub(crate) use self::watched::Watched;

/// Evenly distributed numbers in `(-scale, scale)` from a hash.
pub(crate) fn numbers(seed: u64, len: usize, scale: f64) -> Vec<f64> {
    let number = |i: usize| {
        let mut x = seed.wrapping_add(i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        x = (x ^ (x >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
        x ^= x >> 32;
        scale * (2.0 * (x >> 11) as f64 / (1u64 << 53) as f64 - 1.0)
    };
    (0..len).map(number).collect()
}

/// Tensors with their types on the host: weight and anchor per tensor, gradients made per step.
struct Problem {
    set: ParamSet,
    /// Element types of weight and gradient, and of the anchor.
    types: Vec<(DType, DType)>,
    missing: fn(usize, usize) -> bool,
}

impl Problem {
    fn new(tensors: &[(&[usize], DType, DType)]) -> Self {
        let mut set = ParamSet::builder();
        for (i, (shape, dtype, _)) in tensors.iter().enumerate() {
            set = set.tensor(format!("t{i}"), shape.to_vec(), *dtype);
        }
        let types = tensors.iter().map(|&(_, dtype, anchor)| (dtype, anchor)).collect();
        Self { set: set.build().unwrap(), types, missing: |_, _| false }
    }

    /// Runs some steps and returns weights and state.
    fn run<B: Backend + Clone>(
        &self,
        backend: &B,
        rule: Rule,
        constraint: Constraint,
        options: &StepOptions,
        steps: usize,
    ) -> (Vec<Vec<f64>>, StateDict) {
        let numel: Vec<usize> = self.set.tensors().iter().map(|spec| spec.numel()).collect();
        let upload = |dtype: DType, values: &[f64]| backend.upload(&Buffer::from_f64(dtype, values)).unwrap();
        let anchors: Vec<_> = numel
            .iter()
            .enumerate()
            .map(|(t, &n)| upload(self.types[t].1, &numbers(t as u64, n, 0.5)))
            .collect();
        let mut weights: Vec<_> = numel
            .iter()
            .enumerate()
            .map(|(t, &n)| {
                let offsets = numbers(100 + t as u64, n, 0.02);
                let values: Vec<f64> =
                    numbers(t as u64, n, 0.5).iter().zip(&offsets).map(|(a, d)| a + d).collect();
                upload(self.types[t].0, &values)
            })
            .collect();
        let mut optimizer = Optimizer::new(backend.clone(), &self.set, rule, constraint).unwrap();
        for step in 0..steps {
            let grads: Vec<_> = numel
                .iter()
                .enumerate()
                .map(|(t, &n)| {
                    let sign = if (step + t) % 3 == 2 { -0.5 } else { 1.0 };
                    let direction = numbers(200 + t as u64, n, sign);
                    let noise = numbers(1000 * (step as u64 + 1) + t as u64, n, 0.2);
                    let values: Vec<f64> = direction.iter().zip(&noise).map(|(g, e)| g + e).collect();
                    upload(self.types[t].0, &values)
                })
                .collect();
            let mut io: Vec<TensorIo<'_, B>> = weights
                .iter_mut()
                .zip(&grads)
                .zip(&anchors)
                .enumerate()
                .map(|(t, ((w, g), a))| TensorIo {
                    weight: B::as_mut(w),
                    grad: (!(self.missing)(step, t)).then(|| B::as_ref(g)),
                    anchor: Some(B::as_ref(a)),
                    variance: None,
                })
                .collect();
            optimizer.step(&mut io, options).unwrap();
        }
        let weights = weights.iter().map(|w| backend.download(w).unwrap().to_f64()).collect();
        (weights, optimizer.state().unwrap())
    }
}

#[track_caller]
fn assert_close(got: &[f64], expected: &[f64], dtype: DType, context: &str) {
    let relative = match dtype {
        DType::F64 => 1e-12,
        DType::F32 => 2e-5,
        DType::F16 => 2f64.powi(-10),
        DType::BF16 => 2f64.powi(-7),
    };
    assert_eq!(got.len(), expected.len());
    for (i, (got, expected)) in got.iter().zip(expected).enumerate() {
        let allowed = 4e-6 + relative * expected.abs();
        assert!(
            (got - expected).abs() <= allowed,
            "{context}, element {i}: {got:e}, the CPU has {expected:e}"
        );
    }
}

fn methods() -> Vec<(Rule, Constraint)> {
    let adamw: Rule = AdamW::default().lr(0.01).into();
    let sgd: Rule = Sgd::default().lr(0.02).into();
    let constraints: [Constraint; 7] = [
        Constraint::None,
        FixedRadius { radius: 1.5, norm: Norm::L2 }.into(),
        Tpgm { norm: Norm::L2, ..Tpgm::default() }.into(),
        Tpgm::default().into(),
        Ftp::default().into(),
        Spd::default().into(),
        Digrap::default().into(),
    ];
    constraints.into_iter().flat_map(|constraint| [(adamw, constraint), (sgd, constraint)]).collect()
}

/// Tensors of many pieces: rows that fit in a piece several times, just so, and not; whole tensors that are cut; many spans.
pub(crate) fn large_tensors_match_the_cpu<D: Device>(gpu: &Gpu<D>) {
    let piece = gpu.chunk();
    let half = piece / 2;
    let shapes: [&[usize]; 8] = [
        &[40, 3, 3, 3],
        &[9, piece],
        &[5, piece + 4],
        &[6, half + 1],
        &[3, 5 * piece - 1],
        &[17 * piece + 3],
        &[64, 48],
        &[300, 4],
    ];
    let tensors: Vec<_> = shapes.iter().map(|&shape| (shape, DType::F32, DType::F32)).collect();
    let problem = Problem::new(&tensors);
    for (rule, constraint) in methods() {
        let options = StepOptions { max_grad_norm: Some(10.0), ..StepOptions::default() };
        let (expected, _) = problem.run(&Cpu::new(), rule, constraint, &options, 4);
        let (got, _) = problem.run(gpu, rule, constraint, &options, 4);
        for (t, (got, expected)) in got.iter().zip(&expected).enumerate() {
            let context = format!("{rule:?} under {constraint:?}, {:?}", shapes[t]);
            assert_close(got, expected, DType::F32, &context);
        }
    }
}

/// One set of tensors of all types, with anchors of other types: all in the same launches.
pub(crate) fn mixed_types_match_the_cpu<D: Device>(gpu: &Gpu<D>) {
    use DType::{BF16, F16, F32, F64};
    let tensors: [(&[usize], DType, DType); 7] = [
        (&[8, 20], F32, F32),
        (&[8, 21], BF16, BF16),
        (&[8, 20], F64, F32),
        (&[2, 3, 7], F16, F32),
        (&[33], F32, BF16),
        (&[5, 16], BF16, F16),
        (&[0, 4], F64, F64),
    ];
    let mut problem = Problem::new(&tensors);
    problem.missing = |step, t| (step == 1 && t == 0) || t == 4;
    for (rule, constraint) in methods() {
        let options = StepOptions::default();
        let (expected, _) = problem.run(&Cpu::new(), rule, constraint, &options, 5);
        let (got, _) = problem.run(gpu, rule, constraint, &options, 5);
        for (t, (got, expected)) in got.iter().zip(&expected).enumerate() {
            assert_close(got, expected, tensors[t].1, &format!("{rule:?} under {constraint:?}, tensor {t}"));
        }
    }
}

/// One block or more than there is work for: same bits. Blocks wait for each other in the second pass, and get to the end even
/// if fewer of them run at a time than were launched.
pub(crate) fn any_number_of_blocks_gives_the_same_bits<D: Device>(gpu: &Gpu<D>) {
    let piece = gpu.chunk();
    let shapes: [&[usize]; 6] =
        [&[9 * piece + 1], &[12, 48], &[3, piece + 4], &[7], &[2 * piece, 2], &[5, 3, 3, 3]];
    let tensors: Vec<_> = shapes.iter().map(|&shape| (shape, DType::F32, DType::F32)).collect();
    let problem = Problem::new(&tensors);
    for (rule, constraint) in methods() {
        let options = StepOptions { max_grad_norm: Some(10.0), ..StepOptions::default() };
        let run = |blocks| {
            let device = Watched::new(gpu.device().clone()).blocks(blocks);
            problem.run(&Gpu::on(device).reports(Reports::AtOnce), rule, constraint, &options, 3)
        };
        let one = run(1);
        for blocks in [2, 5, 1000] {
            assert!(run(blocks) == one, "{rule:?} under {constraint:?}: {blocks} blocks differ from one");
        }
    }
}

/// A refused step is skipped on the device, and reported by a later call, which does nothing else.
pub(crate) fn late_reports_come_with_a_later_call<D: Device>(gpu: &Gpu<D>) {
    let gpu = gpu.clone().reports(Reports::Late);
    let set = ParamSet::builder()
        .tensor("first", [2, 3], DType::F32)
        .tensor("second", [2, 3], DType::F32)
        .build()
        .unwrap();
    let upload = |values: &[f64]| gpu.upload(&Buffer::from_f64(DType::F32, values)).unwrap();
    let (mut first, mut second) = (upload(&[0.5; 6]), upload(&[0.5; 6]));
    let (good, bad, anchor) =
        (upload(&[1.0; 6]), upload(&[1.0, 1.0, f64::NAN, 1.0, 1.0, 1.0]), upload(&[0.5; 6]));
    let mut optimizer = Optimizer::new(gpu.clone(), &set, Sgd::default().lr(0.1), Spd::default()).unwrap();
    let mut step = |grad: &tpgm_cuda::Buffer<D>| {
        let io =
            |weight, grad| TensorIo { weight, grad: Some(grad), anchor: Some(anchor.view()), variance: None };
        let mut io = [io(first.view_mut(), good.view()), io(second.view_mut(), grad.view())];
        optimizer.step(&mut io, &StepOptions::default())
    };
    assert_eq!(step(&bad).map(|report| report.grad_norm), Ok(None));
    // The outcome may take a while; until it is there, steps go on.
    let mut steps = 0;
    let error = loop {
        match step(&good) {
            Ok(_) => steps += 1,
            Err(error) => break error,
        }
        assert!(steps < 10_000, "the report never came");
    };
    assert_eq!(error, Error::NonFiniteGradient { tensor: "second".into(), count: 1 });
    step(&good).unwrap();
    let taken = optimizer.scalars().unwrap()[1].step;
    assert_eq!(taken, f64::from(steps + 1), "the refused step and the one that reported it were not taken");
}

/// One tensor of 6 elements and its operands.
struct Small<D: Device> {
    optimizer: Optimizer<Gpu<D>>,
    weight: tpgm_cuda::Buffer<D>,
    good: tpgm_cuda::Buffer<D>,
    bad: tpgm_cuda::Buffer<D>,
    anchor: tpgm_cuda::Buffer<D>,
}

impl<D: Device> Small<D> {
    fn new(gpu: &Gpu<D>) -> Self {
        let set = ParamSet::builder().tensor("w", [2, 3], DType::F32).build().unwrap();
        let upload = |values: &[f64]| gpu.upload(&Buffer::from_f64(DType::F32, values)).unwrap();
        Self {
            optimizer: Optimizer::new(gpu.clone(), &set, Sgd::default().lr(0.1), Spd::default()).unwrap(),
            weight: upload(&[0.5; 6]),
            good: upload(&[1.0; 6]),
            bad: upload(&[1.0, f64::INFINITY, f64::NAN, 1.0, 1.0, 1.0]),
            anchor: upload(&[0.5; 6]),
        }
    }

    fn call<R>(
        &mut self,
        good: bool,
        call: impl FnOnce(&mut Optimizer<Gpu<D>>, &mut [TensorIo<'_, Gpu<D>>]) -> R,
    ) -> R {
        let grad = if good { &self.good } else { &self.bad };
        let io = TensorIo {
            weight: self.weight.view_mut(),
            grad: Some(grad.view()),
            anchor: Some(self.anchor.view()),
            variance: None,
        };
        call(&mut self.optimizer, &mut [io])
    }

    fn step(&mut self, good: bool) -> tpgm_core::Result<tpgm_core::StepReport> {
        self.call(good, |optimizer, io| optimizer.step(io, &StepOptions::default()))
    }
}

/// What a step asks of a device: to record one event, which was made before, after the copy of the outcome; and nothing but
/// kernels while it is captured.
pub(crate) fn steps_make_no_events_and_captures_hold_kernels_alone<D: Device>(gpu: &Gpu<D>) {
    let device = Watched::new(gpu.device().clone());
    let calls = device.calls.clone();
    let mut small = Small::new(&Gpu::on(device));
    let events = calls.events.load(Relaxed);

    calls.capturing.store(true, Relaxed);
    let error = small.step(true).unwrap_err().to_string();
    assert!(error.contains("`prepare_step`"), "{error}");
    let error = small.call(true, |optimizer, io| optimizer.prepare_step(io, &StepOptions::default()));
    assert!(error.unwrap_err().to_string().contains("cannot be part of a graph"));
    assert_eq!(calls.launches.load(Relaxed), 0);
    calls.capturing.store(false, Relaxed);

    calls.kernels.lock().unwrap().clear();
    small.call(true, |optimizer, io| optimizer.prepare_step(io, &StepOptions::default())).unwrap();
    assert_eq!(*calls.kernels.lock().unwrap(), ["measure_f32", "sgd_f32"], "loaded before a capture");
    small.step(true).unwrap();
    assert_eq!(calls.records.load(Relaxed), 2, "tables and outcome");
    for steps in 1..=20 {
        small.step(true).unwrap();
        assert_eq!(calls.records.load(Relaxed), 2 + steps);
    }
    assert_eq!(calls.events.load(Relaxed), events);

    // There are outcomes that nobody has looked at.
    let before = (calls.others(), calls.launches.load(Relaxed));
    calls.capturing.store(true, Relaxed);
    small.step(true).unwrap();
    let error = small.optimizer.outcome().unwrap_err().to_string();
    assert!(error.contains("captured"), "{error}");
    // A copy in the graph would bring this learning rate back with every replay.
    let other = small.call(true, |optimizer, io| optimizer.step(io, &StepOptions::lr(0.2))).unwrap_err();
    assert!(other.to_string().contains("`prepare_step`"), "{other}");
    assert_eq!((calls.others(), calls.launches.load(Relaxed)), (before.0, before.1 + 2));
    calls.capturing.store(false, Relaxed);
    small.optimizer.outcome().unwrap();
    let taken = small.optimizer.scalars().unwrap()[0].step;
    assert_eq!(taken, 22.0);
}

/// A copy may be under way when its page-locked memory is dropped.
pub(crate) fn dropping_waits_for_copies<D: Device>(gpu: &Gpu<D>) {
    let device = Watched::new(gpu.device().clone());
    let calls = device.calls.clone();
    let mut small = Small::new(&Gpu::on(device));
    small.step(true).unwrap();
    assert_eq!(calls.waits.load(Relaxed), 0);
    drop(small);
    assert_eq!(calls.waits.load(Relaxed), 2, "tables and outcome");
}

/// The outcome on demand: of late steps, and of captured ones, which report in no other way.
pub(crate) fn outcomes_are_told_on_demand<D: Device>(gpu: &Gpu<D>) {
    let refused = Err(Error::NonFiniteGradient { tensor: "w".into(), count: 1 });
    let unmeasured = Ok(tpgm_core::StepReport::default());
    let device = Watched::new(gpu.device().clone());
    let calls = device.calls.clone();
    let mut small = Small::new(&Gpu::on(device));
    assert_eq!(small.optimizer.outcome(), unmeasured, "of nothing");

    // An earlier error comes once, the last call's own every time.
    assert_eq!(small.step(false), unmeasured);
    let late = small.step(true);
    let told = if late.is_err() { late } else { small.optimizer.outcome() };
    assert_eq!(told, refused);
    if small.optimizer.scalars().unwrap()[0].step == 0.0 {
        small.step(true).unwrap();
    }
    assert_eq!(small.optimizer.outcome(), unmeasured);
    assert_eq!(small.step(false), unmeasured);
    for _ in 0..3 {
        assert_eq!(small.optimizer.outcome(), refused);
    }

    small.call(false, |optimizer, io| optimizer.prepare_step(io, &StepOptions::default())).unwrap();
    assert_eq!(small.step(true), unmeasured);
    assert_eq!(small.optimizer.outcome(), unmeasured);
    small.call(false, |optimizer, io| optimizer.prepare_step(io, &StepOptions::default())).unwrap();
    calls.capturing.store(true, Relaxed);
    assert_eq!(small.step(false), unmeasured);
    calls.capturing.store(false, Relaxed);
    assert_eq!(small.optimizer.outcome(), refused);

    let clip = StepOptions { max_grad_norm: Some(0.5), ..StepOptions::default() };
    small.call(true, |optimizer, io| optimizer.step(io, &clip)).unwrap();
    let norm = small.optimizer.outcome().unwrap().grad_norm.unwrap();
    assert!((norm - 6f64.sqrt()).abs() < 1e-12, "{norm}");
}

/// What nobody may see of a projection update inside an optimizer: masters, and steps that leave projecting to it.
pub(crate) fn deferred_projections_match_the_cpu<D: Device>(gpu: &Gpu<D>) {
    fn run<B: Backend + Clone>(backend: &B, dtype: DType) -> (Vec<f64>, StateDict) {
        let set = ParamSet::builder().tensor("w", [4, 9], dtype).tensor("free", [5], dtype);
        let set = set.group(Group::new("free").excluded()).build().unwrap();
        let upload = |values: &[f64]| backend.upload(&Buffer::from_f64(dtype, values)).unwrap();
        let (anchor, free_anchor) = (upload(&numbers(1, 36, 0.5)), upload(&numbers(2, 5, 0.5)));
        let (mut w, mut free) = (upload(&numbers(1, 36, 0.5)), upload(&numbers(2, 5, 0.5)));
        let options = EngineOptions::default().masters(Masters::Auto);
        let mut optimizer = Optimizer::with_options(
            backend.clone(),
            &set,
            AdamW::default().lr(0.02),
            Tpgm::default(),
            options,
        )
        .unwrap();
        for step in 0..3 {
            let (grad, free_grad) =
                (upload(&numbers(10 + step, 36, 1.0)), upload(&numbers(20 + step, 5, 1.0)));
            let mut io = [
                TensorIo {
                    weight: B::as_mut(&mut w),
                    grad: Some(B::as_ref(&grad)),
                    anchor: Some(B::as_ref(&anchor)),
                    variance: None,
                },
                TensorIo {
                    weight: B::as_mut(&mut free),
                    grad: Some(B::as_ref(&free_grad)),
                    anchor: Some(B::as_ref(&free_anchor)),
                    variance: None,
                },
            ];
            let options = StepOptions {
                projection: Projection::Defer,
                gradients: Gradients::Trust,
                ..StepOptions::default()
            };
            optimizer.step(&mut io, &options).unwrap();
            let projector = optimizer.projector_mut().unwrap();
            projector.begin(&mut io).unwrap();
            for _ in 0..2 {
                projector.apply(&mut io).unwrap();
                projector.update(&mut io).unwrap();
            }
            projector.finish(&mut io).unwrap();
        }
        (backend.download(&w).unwrap().to_f64(), optimizer.state().unwrap())
    }
    for dtype in DType::ALL {
        let ((expected, state), (got, got_state)) = (run(&Cpu::new(), dtype), run(gpu, dtype));
        assert_close(&got, &expected, dtype, &format!("{dtype}"));
        assert_eq!(state.keys().collect::<Vec<_>>(), got_state.keys().collect::<Vec<_>>());
        for (name, expected) in &state {
            assert_close(&got_state[name].to_f64(), &expected.to_f64(), DType::F32, name);
        }
    }
}

/// The numbers of the published code.
pub(crate) fn golden_cases_pass<D: Device>(gpu: &Gpu<D>) {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../tpgm-core/tests/golden");
    // On another machine the folder lies elsewhere.
    let folder = std::env::var("TPGM_GOLDEN").unwrap_or_else(|_| folder.to_owned());
    let subject = BackendSubject::new("gpu", gpu.clone());
    let report = run_folder(folder.as_ref(), &subject, None).expect("the golden folder");
    println!("{report}");
    assert!(report.passed() && report.cases.len() >= 50, "{report}");
}

/// A test of every function above, for the backend that the expression gives, or does not.
#[macro_export]
macro_rules! device_suite {
    ($backend:expr) => {
        $crate::device_suite!(@tests $backend,
            large_tensors_match_the_cpu,
            mixed_types_match_the_cpu,
            any_number_of_blocks_gives_the_same_bits,
            late_reports_come_with_a_later_call,
            steps_make_no_events_and_captures_hold_kernels_alone,
            dropping_waits_for_copies,
            outcomes_are_told_on_demand,
            deferred_projections_match_the_cpu,
            golden_cases_pass,
            sums_are_nearly_exact,
            halves_with_f32_anchors_match_the_cpu,
        );
    };
    (@tests $backend:expr, $($name:ident),* $(,)?) => {
        $(
            #[test]
            fn $name() {
                if let Some(backend) = $backend {
                    common::$name(&backend);
                }
            }
        )*
    };
}
