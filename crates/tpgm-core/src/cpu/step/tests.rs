//! Rows of a tensor step as in the whole, to the bit.
#![allow(clippy::unwrap_used)]

use crate::{
    AdamW, Constraint, Cpu, DType, Digrap, DigrapTest, EngineOptions, Error, FixedRadius, Ftp, FtpMemory,
    L2Sp, Norm, Optimizer, ParamSet, StepOptions, StepSums, TensorIo, TensorScalars, TensorSpec,
};

const LEN: usize = 24;
/// Two rows are a piece.
const CHUNK: usize = 2 * LEN;
const ROWS: [std::ops::Range<usize>; 3] = [0..4, 4..6, 6..10];

fn numbers(seed: usize) -> Vec<f32> {
    (0..10 * LEN).map(|i| ((i * 37 + seed * 101) % 97) as f32 / 97.0 - 0.5).collect()
}

fn spec(name: &str, rows: usize) -> TensorSpec {
    TensorSpec { name: name.to_owned(), shape: vec![rows, LEN], dtype: DType::F32 }
}

fn optimizer(set: &ParamSet, constraint: Constraint) -> Optimizer<Cpu> {
    let options = EngineOptions::default().chunk(CHUNK);
    Optimizer::with_options(Cpu::new(), set, AdamW::default().lr(0.01), constraint, options).unwrap()
}

/// The blocks of a tensor as operands.
fn blocks_of<'a>(weight: &'a mut [f32], grad: &'a [f32], anchor: &'a [f32]) -> Vec<TensorIo<'a, Cpu>> {
    let (mut rest, mut io) = (weight, Vec::new());
    for rows in ROWS {
        let at = rows.start * LEN..rows.end * LEN;
        let (own, others) = rest.split_at_mut(at.len());
        io.push(TensorIo::new(own).grad(&grad[at.clone()]).anchor(&anchor[at]));
        rest = others;
    }
    io
}

#[test]
fn rows_with_the_sums_of_all_move_as_in_the_whole() {
    let set = ParamSet::builder().tensors([spec("w", 10)]).build().unwrap();
    let blocks = set.pieces(ROWS.map(|rows| (0, spec(&format!("w{rows:?}"), rows.len()))));
    let constraints: [Constraint; 6] = [
        Constraint::None,
        L2Sp::default().into(),
        FixedRadius { radius: 0.1, norm: Norm::Mars }.into(),
        Digrap { test: DigrapTest::Conflict, ..Digrap::default() }.into(),
        Ftp::default().into(),
        Ftp { memory: FtpMemory::Low, ..Ftp::default() }.into(),
    ];
    let options = StepOptions { grad_scale: 0.7, ..StepOptions::default() };
    for constraint in constraints {
        let (mut whole, mut parts) = (optimizer(&set, constraint), optimizer(&blocks, constraint));
        let mut alone = optimizer(&blocks, constraint);
        let anchor = numbers(1);
        let [mut expected, mut got, mut apart] = [(); 3].map(|()| anchor.clone());
        for step in 0..9 {
            // DiGraP learns to project where gradients go back and forth.
            let back = step % 2 == 1 && matches!(constraint, Constraint::Digrap(_));
            let sign = if back { -1.0 } else { 1.0 };
            let grad: Vec<f32> = numbers(2 + step / 2).iter().map(|x| sign * x).collect();
            whole
                .step(&mut [TensorIo::new(&mut expected[..]).grad(&grad[..]).anchor(&anchor[..])], &options)
                .unwrap();

            let mut io = blocks_of(&mut got, &grad, &anchor);
            let pieces = parts.step_sums(&mut io).unwrap();
            assert_eq!(pieces.iter().map(Vec::len).collect::<Vec<_>>(), [2, 1, 2]);
            let sums = Some(StepSums::total(pieces.into_iter().flatten()));
            parts.step_with_sums(&mut io, &options, &[sums; 3]).unwrap();
            drop(io);
            alone.step(&mut blocks_of(&mut apart, &grad, &anchor), &options).unwrap();
            assert_eq!(got, expected, "{constraint:?}, step {step}");

            let (all, own) = (whole.scalars().unwrap()[0], parts.scalars().unwrap());
            let most = |of: fn(&TensorScalars) -> f64| own.iter().map(of).fold(0.0, f64::max);
            assert_eq!(most(|own| own.radius), all.radius, "{constraint:?}, step {step}");
            assert_eq!(most(|own| own.norm), all.norm);
            assert_eq!(own.iter().map(|own| own.ratio).fold(1.0, f64::min), all.ratio.min(1.0));
            parts.put_scalars(&[all; 3]).unwrap();
            assert_eq!(parts.scalars().unwrap(), [all; 3]);
        }
        // Without the sums every block goes by its own.
        let needed = matches!(constraint, Constraint::Ftp(_) | Constraint::Digrap(_));
        assert_eq!(apart == expected, !needed, "{constraint:?}");
    }
}

#[test]
fn scalars_are_one_per_tensor() {
    let set = ParamSet::builder().tensors([spec("w", 10)]).build().unwrap();
    let error = optimizer(&set, Constraint::None).put_scalars(&[]).unwrap_err();
    assert_eq!(error, Error::CountMismatch { what: "scalars", expected: 1, got: 0 });
}
