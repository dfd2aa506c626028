use super::*;
use crate::blocks::testing::{LENGTHS, noise, on_any_pool};
use crate::element::Buffer;
use proptest::prelude::*;

const RAW: ModelStock = ModelStock { unit: StockUnit::Tensor, range: StockRange::Raw };

/// The formulas as written, in f64, for one unit.
fn plain_t(anchor: &[f64], models: &[&[f64]]) -> f64 {
    let u: Vec<Vec<f64>> =
        models.iter().map(|m| m.iter().zip(anchor).map(|(w, w0)| w - w0).collect()).collect();
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f64>();
    let (mut sum, mut count) = (0.0, 0.0);
    for i in 0..u.len() {
        for j in 0..i {
            let norms = dot(&u[i], &u[i]).sqrt() * dot(&u[j], &u[j]).sqrt();
            sum += (dot(&u[i], &u[j]) / norms.max(1e-6)).clamp(-1.0, 1.0);
            count += 1.0;
        }
    }
    let (n, c) = (u.len() as f64, sum / count);
    n * c / (1.0 + (n - 1.0) * c)
}

/// Merges tensors of one type, shapes given, and checks coefficients and weights against the formulas.
fn check(stock: ModelStock, shape: &[usize], n: usize, dtype: DType) {
    let len = shape.iter().product();
    let w0 = noise(9, len);
    let near = |seed| -> Vec<f64> {
        let shared = noise(10, len).into_iter().zip(noise(seed, len));
        w0.iter().zip(shared).map(|(w0, (a, b))| w0 + 0.1 * a + 0.05 * b).collect()
    };
    let anchor = Buffer::from_f64(dtype, &w0);
    let models: Vec<Buffer> = (0..n as u64).map(|m| Buffer::from_f64(dtype, &near(m))).collect();
    let (t, out) = on_any_pool(|| {
        let mut out = Buffer::zeros(dtype, len);
        let slices = models.iter().map(Buffer::as_slice);
        let entry = StockEntry::new("w", shape, anchor.as_slice(), slices, out.as_mut());
        let t = stock.merge(&mut [entry]).unwrap();
        (t, out)
    });
    let (units, unit_len) = match stock.unit {
        StockUnit::Tensor => (1, len),
        StockUnit::Row => rows_of(shape),
    };
    assert_eq!(t[0].len(), units);
    let (w0, w): (_, Vec<_>) = (anchor.to_f64(), models.iter().map(Buffer::to_f64).collect());
    // Displacements are formed in the compute type: rounded to 2^-25 of the weights, themselves below 1.2.
    let (t_eps, w_eps) = match dtype {
        DType::F64 => (1e-13, 1e-15),
        DType::F32 => (1e-5, 1e-6),
        DType::F16 => (1e-5, 1e-3),
        DType::BF16 => (1e-5, 8e-3),
    };
    for (unit, &t) in t[0].iter().enumerate() {
        let range = unit * unit_len..(unit + 1) * unit_len;
        let own: Vec<&[f64]> = w.iter().map(|w| &w[range.clone()]).collect();
        let expected = plain_t(&w0[range.clone()], &own);
        assert!((t - expected).abs() <= t_eps, "{shape:?} {dtype} [{unit}]: {t} {expected}");
        for i in range {
            let mean = w.iter().map(|w| w[i]).sum::<f64>() / n as f64;
            let (got, expected) = (out.as_slice().get(i), t * mean + (1.0 - t) * w0[i]);
            assert!((got - expected).abs() <= w_eps, "{shape:?} {dtype} [{i}]: {got} {expected}");
        }
    }
}

#[test]
fn every_type_and_length_follows_the_formula() {
    for len in LENGTHS.into_iter().filter(|&len| len > 8) {
        for dtype in DType::ALL {
            check(RAW, &[len], 3, dtype);
        }
    }
}

#[test]
fn rows_have_their_own_coefficient_however_they_are_cut() {
    let rows = ModelStock { unit: StockUnit::Row, range: StockRange::Raw };
    // Many rows in a chunk, rows longer than a block, than a chunk, one row, a 1-D tensor.
    for shape in [&[3000, 23][..], &[70, 2, 500], &[3, CHUNK + 5], &[1, 40], &[40]] {
        for dtype in [DType::F64, DType::F32] {
            check(rows, shape, 2, dtype);
        }
    }
    check(rows, &[10, 30], 5, DType::BF16);
}

#[test]
fn hand_computed_coefficients() {
    let merge = |stock: ModelStock, models: &[[f64; 2]]| {
        let mut out = [0.0f64; 2];
        let entry = StockEntry::new("w", &[2], &[1.0f64, 1.0], models.iter(), &mut out);
        stock.merge(&mut [entry]).map(|t| (t[0][0], out))
    };
    // Displacements (1, 0) and (1, 1): c = 1 / sqrt 2, t = 2c / (1 + c).
    let (t, out) = merge(RAW, &[[2.0, 1.0], [2.0, 2.0]]).unwrap();
    assert!((t - 0.828_427_124_746_190_1).abs() < 1e-15);
    assert!((out[0] - (1.0 + t)).abs() < 1e-15 && (out[1] - (1.0 + t / 2.0)).abs() < 1e-15);
    // Three models, cosines 0, 1 / sqrt 2, 1 / sqrt 2.
    let (t, _) = merge(RAW, &[[2.0, 1.0], [1.0, 2.0], [2.0, 2.0]]).unwrap();
    let c = 2.0f64.sqrt() / 3.0;
    assert!((t - 3.0 * c / (1.0 + 2.0 * c)).abs() < 1e-15);
    // Displacements (1, 0) and (-3, 4): c = -0.6, raw t = -3, clamped 0: the anchor.
    let apart = [[2.0, 1.0], [-2.0, 5.0]];
    let (t, out) = merge(RAW, &apart).unwrap();
    assert!(
        (t + 3.0).abs() < 1e-14 && (out[0] - 4.0).abs() < 1e-14 && (out[1] + 5.0).abs() < 1e-14,
        "{t} {out:?}"
    );
    assert_eq!(merge(ModelStock::default(), &apart).unwrap(), (0.0, [1.0, 1.0]));
    // Opposite: the raw formula divides by zero.
    let opposite = [[2.0, 1.0], [0.0, 1.0]];
    assert!(matches!(merge(RAW, &opposite), Err(Error::NonFiniteValue { .. })));
    assert_eq!(merge(ModelStock::default(), &opposite).unwrap().0, 0.0);
    // Equal: the model. Unmoved: the anchor.
    assert_eq!(merge(RAW, &[[4.0, 5.0]; 4]).unwrap(), (1.0, [4.0, 5.0]));
    assert_eq!(merge(RAW, &[[1.0, 1.0]; 2]).unwrap(), (0.0, [1.0, 1.0]));
    // Norms 1e-4 each: the product 1e-8 counts as 1e-6, so c = 0.01.
    let close = 1.0 + 1e-4;
    let (t, _) = merge(RAW, &[[close, 1.0]; 2]).unwrap();
    assert!((t - 0.02 / 1.01).abs() < 1e-9, "{t}");
}

#[test]
fn clamping_stays_at_the_anchor_below_the_pole() {
    // u1 and u3 are tiny and agree, u2 is long and opposite: the floor hides the agreement, c = -2/3.
    let models = [[1e-4], [-1.0], [1e-4]];
    let run = |range| {
        let mut out = [5.0f64];
        let entry = StockEntry::new("w", &[1], &[0.0f64], models.iter(), &mut out);
        let unit = StockUnit::Tensor;
        ModelStock { unit, range }.merge(&mut [entry]).unwrap()[0][0]
    };
    assert!(run(StockRange::Raw) > 1.0);
    assert_eq!(run(StockRange::Clamped), 0.0);
}

#[test]
fn mistakes_are_named_and_nothing_is_written() {
    let run = |anchor: &[f32], models: &[&[f32]]| {
        let mut out = [7.0f32; 2];
        let entry = StockEntry::new("w", &[2], anchor, models.iter().copied(), &mut out);
        let error = ModelStock::default().merge(&mut [entry]).unwrap_err();
        assert_eq!(out, [7.0; 2]);
        error
    };
    let w: &[f32] = &[1.0, 2.0];
    assert!(matches!(run(w, &[w]), Error::TooFew { needed: 2, got: 1, .. }));
    assert!(matches!(run(&[1.0], &[w, w]), Error::LengthMismatch { what: "anchor", .. }));
    assert!(matches!(run(w, &[w, &[1.0]]), Error::LengthMismatch { what: "value in a model", .. }));
    let error = run(w, &[w, &[f32::NAN, 1.0]]);
    assert_eq!(error.to_string(), "tensor `w`: its displacement is not finite");
}

#[test]
fn empty_tensors_and_sets_pass() {
    let stock = ModelStock { unit: StockUnit::Row, ..ModelStock::default() };
    let empty = |shape| StockEntry::new("w", shape, &[0.0f32; 0], [&[0.0f32; 0]; 2], SliceMut::F32(&mut []));
    assert_eq!(stock.merge(&mut []).unwrap(), Vec::<Vec<f64>>::new());
    assert_eq!(
        stock.merge(&mut [empty(&[0, 4]), empty(&[2, 0]), empty(&[0])]).unwrap(),
        [vec![], vec![0.0, 0.0], vec![0.0]]
    );
    let entry = StockEntry::new("w", &[0], &[0.0f32; 0], [&[0.0f32; 0]; 2], SliceMut::F32(&mut []));
    assert_eq!(ModelStock::default().merge(&mut [entry]).unwrap(), [[0.0]]);
}

proptest! {
    #[test]
    fn order_of_models_and_common_scale_do_not_matter(
        values in proptest::collection::vec((-2.0..2.0f64, -2.0..2.0f64, -2.0..2.0f64, -2.0..2.0f64), 2..40),
    ) {
        let column = |f: fn(&(f64, f64, f64, f64)) -> f64| values.iter().map(f).collect::<Vec<f64>>();
        let (w0, a, b, c) = (column(|v| v.0), column(|v| v.1), column(|v| v.2), column(|v| v.3));
        let shape = [w0.len()];
        let run = |models: [&Vec<f64>; 3]| {
            let mut out = vec![0.0f64; w0.len()];
            let entry = StockEntry::new("w", &shape, &w0, models, &mut out);
            let t = ModelStock::default().merge(&mut [entry]).unwrap()[0][0];
            (t, out)
        };
        let (t, out) = run([&a, &b, &c]);
        prop_assert!((0.0..=1.0).contains(&t));
        prop_assert!((t - plain_t(&w0, &[&a, &b, &c]).clamp(0.0, 1.0)).abs() < 1e-10);
        let (other_t, other) = run([&c, &a, &b]);
        prop_assert!((t - other_t).abs() < 1e-10);
        prop_assert!(out.iter().zip(&other).all(|(x, y)| (x - y).abs() < 1e-9));
        // Twice the displacements: the same angle.
        let twice = |w: &Vec<f64>| w.iter().zip(&w0).map(|(w, w0)| w0 + 2.0 * (w - w0)).collect::<Vec<_>>();
        prop_assert!((t - run([&twice(&a), &twice(&b), &twice(&c)]).0).abs() < 1e-9);
    }
}
