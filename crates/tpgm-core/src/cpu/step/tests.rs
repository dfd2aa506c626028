//! Rows of a tensor step as in the whole, to the bit.
#![allow(clippy::unwrap_used)]

use crate::{
    AdamW, Constraint, Cpu, DType, Digrap, DigrapTest, EngineOptions, Error, FixedRadius, Ftp, FtpMemory,
    Gradients, L2Sp, Norm, Optimizer, ParamSet, StepOptions, StepSums, TensorIo, TensorScalars, TensorSpec,
};

const LEN: usize = 24;

/// How a tensor is cut: elements of a piece, and rows of blocks.
#[derive(Debug, Clone, Copy)]
struct Cut {
    chunk: usize,
    rows: [[usize; 2]; 3],
    /// Pieces of each block, where rows stay whole and where they need not.
    pieces: [[usize; 3]; 2],
}

/// Two rows are a piece.
const WHOLE_ROWS: Cut = Cut { chunk: 2 * LEN, rows: [[0, 4], [4, 6], [6, 10]], pieces: [[2, 1, 2]; 2] };

/// One and a half are.
const HALF_ROWS: Cut = Cut { chunk: 36, rows: [[0, 3], [3, 6], [6, 10]], pieces: [[3, 3, 4], [2, 2, 3]] };

fn numbers(seed: usize) -> Vec<f32> {
    (0..10 * LEN).map(|i| ((i * 37 + seed * 101) % 97) as f32 / 97.0 - 0.5).collect()
}

fn spec(name: &str, rows: usize) -> TensorSpec {
    TensorSpec { name: name.to_owned(), shape: vec![rows, LEN], dtype: DType::F32 }
}

fn whole() -> ParamSet {
    ParamSet::builder().tensors([spec("w", 10)]).build().unwrap()
}

fn blocks(set: &ParamSet, cut: Cut) -> ParamSet {
    set.pieces(cut.rows.map(|[start, end]| (0, spec(&format!("w[{start}..{end}]"), end - start))))
}

fn optimizer(set: &ParamSet, constraint: Constraint, chunk: usize) -> Optimizer<Cpu> {
    let options = EngineOptions::default().chunk(chunk);
    Optimizer::with_options(Cpu::new(), set, AdamW::default().lr(0.01), constraint, options).unwrap()
}

/// The blocks of a tensor as operands.
fn blocks_of<'a>(
    cut: Cut,
    weight: &'a mut [f32],
    grad: &'a [f32],
    anchor: &'a [f32],
) -> Vec<TensorIo<'a, Cpu>> {
    let (mut rest, mut io) = (weight, Vec::new());
    for [start, end] in cut.rows {
        let at = start * LEN..end * LEN;
        let (own, others) = rest.split_at_mut(at.len());
        io.push(TensorIo::new(own).grad(&grad[at.clone()]).anchor(&anchor[at]));
        rest = others;
    }
    io
}

#[test]
fn rows_with_the_sums_of_all_move_as_in_the_whole() {
    let constraints: [Constraint; 6] = [
        Constraint::None,
        L2Sp::default().into(),
        FixedRadius { radius: 0.1, norm: Norm::Mars }.into(),
        Digrap { test: DigrapTest::Conflict, ..Digrap::default() }.into(),
        Ftp::default().into(),
        Ftp { memory: FtpMemory::Low, ..Ftp::default() }.into(),
    ];
    let checked = StepOptions { grad_scale: 0.7, ..StepOptions::default() };
    let trusted = StepOptions { gradients: Gradients::Trust, ..checked };
    let cuts = [(WHOLE_ROWS, checked), (HALF_ROWS, checked), (HALF_ROWS, trusted)];
    for (constraint, (cut, options)) in
        constraints.into_iter().flat_map(|constraint| cuts.map(|cut| (constraint, cut)))
    {
        let new = |set: &ParamSet| optimizer(set, constraint, cut.chunk);
        let (set, blocks) = (whole(), blocks(&whole(), cut));
        let (mut whole, mut parts, mut alone) = (new(&set), new(&blocks), new(&blocks));
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

            let mut io = blocks_of(cut, &mut got, &grad, &anchor);
            let pieces = parts.step_sums(&mut io).unwrap();
            let counts = cut.pieces[usize::from(constraint.norm().is_none())];
            assert_eq!(pieces.iter().map(Vec::len).collect::<Vec<_>>(), counts, "{constraint:?}, {cut:?}");
            let sums = Some(StepSums::total(pieces.into_iter().flatten()));
            parts.step_with_sums(&mut io, &options, &[sums; 3]).unwrap();
            drop(io);
            alone.step(&mut blocks_of(cut, &mut apart, &grad, &anchor), &options).unwrap();
            assert_eq!(got, expected, "{constraint:?}, {cut:?}, step {step}");

            let (all, own) = (whole.scalars().unwrap()[0], parts.scalars().unwrap());
            let most = |of: fn(&TensorScalars) -> f64| own.iter().map(of).fold(0.0, f64::max);
            assert_eq!(most(|own| own.radius), all.radius, "{constraint:?}, {cut:?}, step {step}");
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
    let error = optimizer(&whole(), Constraint::None, 48).put_scalars(&[]).unwrap_err();
    assert_eq!(error, Error::CountMismatch { what: "scalars", expected: 1, got: 0 });
}

#[test]
fn sums_that_do_not_fit_are_refused_before_anything_moves() {
    let blocks = blocks(&whole(), WHOLE_ROWS);
    let mut optimizer = optimizer(&blocks, Ftp::default().into(), WHOLE_ROWS.chunk);
    let (anchor, grad) = (numbers(1), numbers(2));
    let mut weight = anchor.clone();
    let mut refused = |options: StepOptions, sums: &[Option<StepSums>]| {
        let mut io = blocks_of(WHOLE_ROWS, &mut weight, &grad, &anchor);
        let error = optimizer.step_with_sums(&mut io, &options, sums).unwrap_err();
        drop(io);
        assert!(weight == anchor && optimizer.scalars().unwrap().iter().all(|own| own.step == 0.0));
        error
    };
    let given = Some(StepSums::default());
    let count = |got| Error::CountMismatch { what: "sums", expected: 3, got };
    assert_eq!(refused(StepOptions::default(), &[]), count(0));
    assert_eq!(refused(StepOptions::default(), &[given; 4]), count(4));

    let clip = StepOptions { max_grad_norm: Some(0.5), ..StepOptions::default() };
    let (option, requirement) = ("StepOptions::max_grad_norm", "None with sums of larger tensors");
    assert_eq!(refused(clip, &[None, given, None]), Error::InvalidOption { option, value: 0.5, requirement });

    let trust = StepOptions { gradients: Gradients::Trust, ..StepOptions::default() };
    for options in [StepOptions::default(), trust] {
        let bad = Some(StepSums { dot: f64::NAN, ..StepSums::default() });
        let what = "product of gradient and displacement";
        let expected = Error::NonFiniteValue { tensor: "w[4..6]".to_owned(), what };
        assert_eq!(refused(options, &[given, bad, None]), expected);
    }
    // Without any it is a step as others are.
    let mut io = blocks_of(WHOLE_ROWS, &mut weight, &grad, &anchor);
    assert!(optimizer.step_with_sums(&mut io, &clip, &[None; 3]).unwrap().grad_norm.is_some());
}
