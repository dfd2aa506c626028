//! A run that is saved, torn down and resumed from the disk takes the same steps, to the last bit, as one that is not.
#![allow(clippy::unwrap_used)]

use candle_core::{DType, Device, ModuleT, Result, Tensor, Var};
use tpgm_candle::nn::{Dropout, DropoutRng};
use tpgm_candle::{
    AdamW, Checkpoint, Checkpointer, Constraint, DataOrder, Digrap, Ema, Every, Ftp, Param, Params,
    Projection, RobustOptimizer, Rule, Schedule, Sgd, Tpgm, TpgmConfig, TrainState,
};

const SAMPLES: usize = 37;
const BATCHES: u64 = 48;

/// What is compared.
struct Case {
    name: &'static str,
    dtype: DType,
    rule: Rule,
    constraint: Constraint,
    /// Batches per step.
    accumulate: usize,
    /// A projection update every so many batches, with the optimizer's own radii.
    update: Every,
    /// The same, with radii of a trainer beside it.
    update_beside: Every,
}

fn cases() -> Vec<Case> {
    let adamw = || AdamW::default().lr(1e-2).into();
    let case = |name, rule, constraint| Case {
        name,
        dtype: DType::F32,
        rule,
        constraint,
        accumulate: 1,
        update: Every::new(0),
        update_beside: Every::new(0),
    };
    let sgd = || Sgd::default().lr(1e-2).momentum(0.9).into();
    vec![
        Case { accumulate: 3, ..case("AdamW x FTP, gradients accumulated", adamw(), Ftp::default().into()) },
        Case { update: Every::new(4), ..case("SGD x TPGM", sgd(), TpgmConfig::default().into()) },
        case("AdamW x DiGraP", adamw(), Digrap::default().into()),
        Case { dtype: DType::BF16, ..case("AdamW x FTP, bf16 with masters", adamw(), Ftp::default().into()) },
        Case {
            dtype: DType::BF16,
            accumulate: 2,
            update: Every::new(6),
            ..case(
                "AdamW x TPGM, bf16 with masters, gradients accumulated",
                adamw(),
                TpgmConfig::default().into(),
            )
        },
        Case { update_beside: Every::new(5), ..case("SGD, TPGM beside it", sgd(), Constraint::None) },
    ]
}

/// Pseudo-random numbers in -1..1.
fn numbers(n: usize, seed: u64) -> Vec<f32> {
    let mut x = seed;
    let mut next = || {
        x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (x >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

#[derive(Clone)]
struct Model {
    first: Var,
    second: Var,
    dropout: Dropout,
    inputs: Tensor,
    targets: Tensor,
}

impl Model {
    fn loss(&self, batch: &[usize], train: bool) -> Result<Tensor> {
        let index: Vec<_> = batch.iter().map(|&i| i as u32).collect();
        let index = Tensor::new(index, &Device::Cpu)?;
        let (x, y) = (self.inputs.index_select(&index, 0)?, self.targets.index_select(&index, 0)?);
        let hidden = x.matmul(&self.first.to_dtype(DType::F32)?.t()?)?.relu()?;
        let out = self.dropout.forward_t(&hidden, train)?.matmul(&self.second.to_dtype(DType::F32)?.t()?)?;
        (out - y)?.sqr()?.mean_all()
    }
}

/// A small run with everything that has state.
struct Run<'c> {
    case: &'c Case,
    model: Model,
    params: Params,
    optimizer: RobustOptimizer,
    beside: Tpgm,
    ema: Ema,
    random: DropoutRng,
    schedule: Schedule,
    order: DataOrder,
    batch: u64,
}

impl<'c> Run<'c> {
    /// A run at its start. `dropout_seed` is another one in a run that will be resumed: it must come from the checkpoint.
    fn new(case: &'c Case, dropout_seed: u64) -> Self {
        let var = |shape: (usize, usize), seed| {
            let values = Tensor::from_vec(numbers(shape.0 * shape.1, seed), shape, &Device::Cpu).unwrap();
            Var::from_tensor(&values.to_dtype(case.dtype).unwrap()).unwrap()
        };
        let (first, second) = (var((8, 6), 1), var((3, 8), 2));
        let params = Params::from_params([
            Param::anchored_here("first.weight", first.clone()).unwrap(),
            Param::anchored_here("second.weight", second.clone()).unwrap(),
        ])
        .unwrap();
        let optimizer = RobustOptimizer::builder(&params)
            .rule(case.rule)
            .constraint(case.constraint)
            .accumulate(case.accumulate)
            .max_grad_norm(1.0)
            .build()
            .unwrap();
        let random = DropoutRng::new(dropout_seed);
        let samples =
            |width, seed| Tensor::from_vec(numbers(SAMPLES * width, seed), (SAMPLES, width), &Device::Cpu);
        Self {
            case,
            beside: Tpgm::new(&params, TpgmConfig::default()).unwrap(),
            ema: Ema::new(&params, 0.9).unwrap(),
            model: Model {
                first,
                second,
                dropout: Dropout::new(0.3, &random).unwrap(),
                inputs: samples(6, 3).unwrap(),
                targets: samples(3, 4).unwrap(),
            },
            random,
            schedule: Schedule::cosine(1e-2, BATCHES).warmup(7),
            order: DataOrder::new(SAMPLES, 5, 11).unwrap(),
            batch: 0,
            params,
            optimizer,
        }
    }

    /// Trains on one batch and returns the loss.
    fn advance(&mut self) -> f64 {
        let batch = loop {
            if let Some(batch) = self.order.next_batch() {
                break batch.to_vec();
            }
        };
        let held_out: Vec<_> = (0..SAMPLES).step_by(3).collect();
        self.optimizer.set_learning_rate(self.schedule.lr(self.batch));
        let update = self.case.update.is_due(self.batch);
        self.optimizer.set_projection(if update { Projection::Defer } else { Projection::Apply });
        let loss = self.model.loss(&batch, true).unwrap();
        let info = self.optimizer.backward_step(&loss).unwrap();
        let held_out_loss = || self.model.loss(&held_out, false);
        if update {
            self.optimizer.tpgm().unwrap().update(held_out_loss).unwrap();
        }
        if self.case.update_beside.is_due(self.batch) {
            self.beside.update(held_out_loss).unwrap();
        }
        if info.taken {
            self.ema.update().unwrap();
        }
        self.batch += 1;
        info.loss.unwrap()
    }

    fn state(&self) -> TrainState {
        TrainState::new(self.batch)
            .weights(self.params.tensors())
            .and_then(|saved| saved.state("optimizer", self.optimizer.state().unwrap()))
            .and_then(|saved| saved.state("tpgm", self.beside.state().unwrap()))
            .and_then(|saved| saved.state("ema", self.ema.state().unwrap()))
            .and_then(|state| state.value("config", self.optimizer.config()))
            .and_then(|state| state.value("schedule", &self.schedule))
            .and_then(|state| state.value("dropout", &self.random.state()))
            .and_then(|state| state.value("data", &self.order))
            .unwrap()
    }

    fn resume(case: &'c Case, saved: &Checkpoint) -> Self {
        let mut run = Self::new(case, 999);
        run.batch = saved.step();
        saved.restore(&run.params).unwrap();
        run.optimizer.resume(&saved.value("config").unwrap(), &saved.state("optimizer").unwrap()).unwrap();
        run.beside.load_state(&saved.state("tpgm").unwrap()).unwrap();
        run.ema.load_state(&saved.state("ema").unwrap()).unwrap();
        run.schedule = saved.value("schedule").unwrap();
        run.random.load_state(saved.value("dropout").unwrap());
        run.order.load_state(&saved.value("data").unwrap()).unwrap();
        run
    }
}

/// Everything a run holds, as the bytes that a checkpoint has of it.
fn bytes(run: &Run<'_>) -> Vec<Vec<u8>> {
    let dir = tempfile::tempdir().unwrap();
    let path = Checkpointer::new(dir.path()).save(&run.state()).unwrap();
    ["weights.safetensors", "state.safetensors", "state.json"]
        .map(|file| std::fs::read(path.join(file)).unwrap())
        .into()
}

#[test]
fn a_resumed_run_has_the_same_bits() {
    for case in cases() {
        let mut whole = Run::new(&case, 5);
        let start = bytes(&whole);
        let mut checkpoints = Vec::new();
        let dir = tempfile::tempdir().unwrap();
        let mut losses = Vec::new();
        for batch in 0..BATCHES {
            // At the start, in the middle of epochs and at their ends (8 batches), between the batches of one step, after
            // updates and before.
            if [0, 1, 8, 13, 16, 29].contains(&batch) {
                checkpoints.push(Checkpointer::new(dir.path()).save(&whole.state()).unwrap());
            }
            losses.push(whole.advance().to_bits());
        }
        let end = bytes(&whole);
        assert_ne!(start[0], end[0], "{}: it was trained", case.name);
        for path in checkpoints {
            let mut resumed = Run::resume(&case, &Checkpoint::load(&path).unwrap());
            for batch in resumed.batch..BATCHES {
                assert_eq!(
                    resumed.advance().to_bits(),
                    losses[batch as usize],
                    "{}: loss of batch {batch} after {}",
                    case.name,
                    path.display()
                );
            }
            assert!(bytes(&resumed) == end, "{}: resumed from {}", case.name, path.display());
        }
    }
}

/// The comparison above can fail: a part of the state that is not restored shows.
#[test]
fn a_run_that_forgets_something_differs() {
    let cases = cases();
    let dir = tempfile::tempdir().unwrap();
    for (case, forget) in
        [(0, "optimizer"), (0, "dropout"), (0, "data"), (1, "optimizer"), (5, "tpgm"), (0, "ema")]
    {
        let mut whole = Run::new(&cases[case], 5);
        (0..13).for_each(|_| _ = whole.advance());
        let path = Checkpointer::new(dir.path()).save(&whole.state()).unwrap();
        let mut resumed = Run::resume(&cases[case], &Checkpoint::load(&path).unwrap());
        let fresh = Run::new(&cases[case], 999);
        match forget {
            "optimizer" => resumed.optimizer.load_state(&fresh.optimizer.state().unwrap()).unwrap(),
            "tpgm" => resumed.beside.load_state(&fresh.beside.state().unwrap()).unwrap(),
            "ema" => resumed.ema.load_state(&fresh.ema.state().unwrap()).unwrap(),
            "dropout" => resumed.random.load_state(fresh.random.state()),
            _ => resumed.order = fresh.order,
        }
        for _ in 0..6 {
            whole.advance();
            resumed.advance();
        }
        let same = match forget {
            // Averages steer nothing.
            "ema" => resumed.ema.state().unwrap() == whole.ema.state().unwrap(),
            _ => bytes(&resumed)[0] == bytes(&whole)[0],
        };
        assert!(!same, "without {forget} a resumed run should differ");
    }
}
