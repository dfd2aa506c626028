use proptest::prelude::*;

use super::*;
use crate::blocks::testing::{LENGTHS, noise, on_any_pool};
use crate::element::Buffer;
use crate::params::Group;

fn one(len: usize, dtype: DType, group: Option<Group>) -> ParamSet {
    ParamSet::builder().tensor("w", [len], dtype).groups(group).build().unwrap()
}

/// The definition, by sorting: what each entry becomes.
fn brute(weight: &[f64], anchor: &[f64], distance: impl Fn(f64, f64) -> f64, k: usize) -> Vec<f64> {
    let mut order: Vec<usize> = (0..weight.len()).collect();
    let far = |i: usize| distance(weight[i], anchor[i]).abs();
    order.sort_by(|&x, &y| far(y).partial_cmp(&far(x)).unwrap().then(x.cmp(&y)));
    let mut out = anchor.to_vec();
    order[..k].iter().for_each(|&i| out[i] = weight[i]);
    out
}

/// Rounds values that f32 holds exactly (or any, for f64) to a type, in one step.
fn rounded(dtype: DType, values: &[f64]) -> Buffer {
    if dtype == DType::F64 {
        return values.to_vec().into();
    }
    let values: Vec<f32> = values.iter().map(|x| *x as f32).collect();
    let mut buffer = Buffer::zeros(dtype, values.len());
    f32::store(&values, buffer.as_mut());
    buffer
}

/// Weights near an anchor, both rounded to their types.
fn near(len: usize, dtype: DType, anchor_dtype: DType) -> (Buffer, Buffer) {
    let anchor = Buffer::from_f64(anchor_dtype, &noise(1, len));
    let moved = noise(2, len);
    let weight: Vec<f64> = anchor.to_f64().iter().zip(moved).map(|(a, m)| a + 0.1 * m * m * m).collect();
    (Buffer::from_f64(dtype, &weight), anchor)
}

#[test]
fn every_type_and_length_agrees_with_sorting() {
    let selekt = Selekt::default();
    for len in LENGTHS {
        for dtype in DType::ALL {
            let set = one(len, dtype, None);
            for anchor_dtype in [dtype, DType::F32] {
                let (weight, anchor) = near(len, dtype, anchor_dtype);
                let (kept, got) = on_any_pool(|| {
                    let mut weight = weight.clone();
                    let io = SelektIo::new(weight.as_mut()).anchor(anchor.as_slice());
                    (selekt.project(&set, &mut [io]).unwrap(), weight)
                });
                let k = (0.05 * len as f64).floor() as usize;
                assert_eq!(kept, [Some(k)]);
                let distance = |w: f64, a: f64| match dtype {
                    DType::F64 => w - a,
                    _ => f64::from(w as f32 - a as f32),
                };
                let expected = brute(&weight.to_f64(), &anchor.to_f64(), distance, k);
                assert!(got == rounded(dtype, &expected), "{dtype} {anchor_dtype} {len}");
            }
        }
    }
}

#[test]
fn masters_are_projected_and_weights_are_their_rounding() {
    for len in LENGTHS {
        let (master, anchor) = near(len, DType::F32, DType::F32);
        let mut weight = Buffer::from_f64(DType::BF16, &master.to_f64());
        let mut projected = master.clone();
        let io = SelektIo::new(weight.as_mut()).anchor(anchor.as_slice()).master(projected.as_mut());
        Selekt::default().project(&one(len, DType::BF16, None), &mut [io]).unwrap();
        let distance = |w: f64, a: f64| f64::from(w as f32 - a as f32);
        let expected = brute(&master.to_f64(), &anchor.to_f64(), distance, len / 20);
        assert!(projected == Buffer::from_f64(DType::F32, &expected), "{len}");
        assert!(weight == rounded(DType::BF16, &expected), "{len}");
    }
}

#[test]
fn ties_keep_the_lowest_index() {
    let selekt = Selekt { alpha: 0.5, ..Selekt::default() };
    let mut weight = [1.0f32, -1.0, 0.0, 1.0, 2.0, -1.0];
    let io = SelektIo::new(&mut weight).anchor(&[0.0f32; 6]);
    selekt.project(&one(6, DType::F32, None), &mut [io]).unwrap();
    assert_eq!(weight, [1.0, -1.0, 0.0, 0.0, 2.0, 0.0]);
}

#[test]
fn groups_say_which_tensors_are_projected() {
    let set = ParamSet::builder()
        .tensors(["plain", "zero", "head", "excluded"].map(|name| TensorSpec {
            name: name.into(),
            shape: vec![2],
            dtype: DType::F32,
        }))
        .group(Group::new("zero").zero_anchor())
        .group(Group::new("head").no_anchor())
        .group(Group::new("excluded").excluded())
        .build()
        .unwrap();
    let mut weights = [[3.0f32, 5.0]; 4];
    let anchor = [2.5f32, 4.0];
    // The anchors of all but the first tensor are unused.
    let mut io: Vec<_> = weights.iter_mut().map(|w| SelektIo::new(w).anchor(&anchor)).collect();
    let selekt = Selekt { alpha: 0.5, ..Selekt::default() };
    assert_eq!(selekt.project(&set, &mut io).unwrap(), [Some(1), Some(1), None, None]);
    assert_eq!(weights, [[2.5, 5.0], [0.0, 5.0], [3.0, 5.0], [3.0, 5.0]]);
}

#[test]
fn small_tensors_are_reset_unless_some_entries_are_kept() {
    let run = |alpha, min_kept| {
        let mut weight = [1.0f32, 3.0, 2.0];
        let selekt = Selekt { alpha, min_kept, every: None };
        let io = SelektIo::new(&mut weight).anchor(&[0.0f32; 3]);
        selekt.project(&one(3, DType::F32, None), &mut [io]).unwrap();
        weight
    };
    assert_eq!(run(0.05, 0), [0.0, 0.0, 0.0]);
    assert_eq!(run(0.05, 1), [0.0, 3.0, 0.0]);
    assert_eq!(run(0.05, 7), [1.0, 3.0, 2.0]);
    assert_eq!(run(1.0, 0), [1.0, 3.0, 2.0]);
    assert_eq!(run(0.999, 0), [0.0, 3.0, 2.0]);
}

#[test]
fn due_every_so_many_steps() {
    let every = |every| Selekt { every, ..Selekt::default() };
    let due = |selekt: Selekt| (0..=6).filter(|&step| selekt.due(step)).collect::<Vec<_>>();
    assert_eq!(due(every(Some(3))), [3, 6]);
    assert_eq!(due(every(Some(1))), [1, 2, 3, 4, 5, 6]);
    assert_eq!(due(every(None)), [0; 0]);
    assert_eq!(due(every(Some(0))), [0; 0]);
    assert!(matches!(every(Some(0)).validate(), Err(Error::InvalidOption { option: "Selekt::every", .. })));
}

#[test]
fn mistakes_are_named_and_nothing_is_changed() {
    let set = ParamSet::builder().tensor("a", [2], DType::BF16).tensor("b", [2], DType::F32).build().unwrap();
    let start = [Buffer::from_f64(DType::BF16, &[1.0, 2.0]), Buffer::F32(vec![3.0, 4.0])];
    let check = |selekt: Selekt, change: &dyn Fn(&mut Vec<SelektIo<'_>>), message: &str| {
        let mut weights = start.clone();
        let anchor = Buffer::F32(vec![0.0; 2]);
        let mut io: Vec<_> =
            weights.iter_mut().map(|w| SelektIo::new(w.as_mut()).anchor(anchor.as_slice())).collect();
        change(&mut io);
        let error = selekt.project(&set, &mut io).unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
        assert_eq!(weights, start);
    };
    let default = Selekt::default();
    for alpha in [-0.1, 1.5, f64::NAN] {
        check(Selekt { alpha, ..default }, &|_| (), "Selekt::alpha");
    }
    check(default, &|io| io.truncate(1), "2 tensors are in the set, but 1");
    check(default, &|io| io[1].anchor = None, "`b`: SeleKT needs its anchor");
    check(default, &|io| io[1].anchor = Some(Slice::F32(&[1.0])), "`b`: its anchor has 1 elements");
    check(
        default,
        &|io| io[1].anchor = Some(Slice::F32(&[1.0, f32::NAN])),
        "`b`: its displacement is not finite",
    );
    check(default, &|io| io.swap(0, 1), "`a`: its weight is f32, but must be bf16");
    let no_master = |io: &mut Vec<SelektIo<'_>>| io[0].master = Some(SliceMut::F32(&mut []));
    check(default, &no_master, "`a`: its master has 0 elements");

    let (mut weight, mut master) = (start[0].clone(), Buffer::zeros(DType::F16, 2));
    let io = SelektIo::new(weight.as_mut()).master(master.as_mut());
    let error = default.project(&one(2, DType::BF16, None), &mut [io]).unwrap_err();
    assert_eq!(error.to_string(), "tensor `w`: its master is f16, but must be f32");
    assert_eq!(weight, start[0]);
}

proptest! {
    #[test]
    fn projecting_again_changes_nothing(
        entries in proptest::collection::vec((-4i8..=4, -4i8..=4), 0..200),
        alpha in 0.0..=1.0f64,
    ) {
        let column = |f: fn(&(i8, i8)) -> i8| entries.iter().map(|e| f32::from(f(e))).collect::<Vec<f32>>();
        let (mut weight, anchor) = (column(|e| e.0), column(|e| e.1));
        let start = weight.clone();
        let set = one(weight.len(), DType::F32, None);
        let selekt = Selekt { alpha, ..Selekt::default() };
        let project = |weight: &mut Vec<f32>| {
            selekt.project(&set, &mut [SelektIo::new(weight).anchor(&anchor)]).unwrap()[0]
        };
        let k = project(&mut weight).unwrap();
        prop_assert!(weight.iter().zip(&anchor).filter(|(w, a)| w != a).count() <= k);
        prop_assert!(weight.iter().zip(&anchor).zip(&start).all(|((w, a), s)| w == a || w == s));
        let once = weight.clone();
        project(&mut weight);
        prop_assert_eq!(weight, once);
    }
}
