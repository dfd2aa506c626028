//! The oracle against vectors produced by the authors' published code, typed in to the digits they were printed with.
#![allow(clippy::unwrap_used)]

use tpgm_core::oracle::{Optimizer, Projector};
use tpgm_core::{AdamW, Constraint, DType, Ftp, Group, Norm, ParamSet, Rule, Sgd, Spd, Tpgm};

/// The printed vectors are single precision runs with 7 to 9 digits.
const TOLERANCE: f64 = 1e-6;

#[track_caller]
fn close(what: &str, got: &[f64], expected: &[f64]) {
    assert_eq!(got.len(), expected.len(), "{what}");
    for (i, (a, b)) in got.iter().zip(expected).enumerate() {
        assert!((a - b).abs() <= TOLERANCE, "{what}[{i}] is {a}, expected {b}");
    }
}

/// Radii are small: an absolute tolerance would say little about them.
#[track_caller]
fn close_radii(got: [f64; 2], expected: [f64; 2]) {
    for (got, expected) in got.iter().zip(expected) {
        assert!((got - expected).abs() <= 1e-5 * expected, "radius {got}, expected {expected}");
    }
}

struct TpgmVector {
    norm: Norm,
    /// (weight, bias) at the first pass, at the second, and at the end.
    radii: [[f64; 2]; 3],
    /// The same at both passes: the weights do not change and no row saturates.
    grad: [f64; 2],
    weight: [f64; 4],
    bias: [f64; 2],
}

/// Two projection updates and a projection of a linear layer under the loss `<G_w, W~> + <G_b, b~>`.
fn run_tpgm(expected: &TpgmVector) {
    let set =
        ParamSet::builder().tensor("w", [2, 2], DType::F64).tensor("b", [2], DType::F64).build().unwrap();
    let anchors = [Some(vec![1.0, 2.0, 3.0, 4.0]), Some(vec![0.5, -0.5])];
    let mut weights = vec![vec![1.3, 1.9, 3.2, 4.6], vec![0.8, -0.9]];
    let grads = [Some(vec![1.0, -2.0, 0.5, -1.5]), Some(vec![-1.0, 2.0])];
    let tpgm = Tpgm { norm: expected.norm, ..Tpgm::default() };
    let mut projector = Projector::new(&set, tpgm).unwrap();
    let radii = |projector: &Projector| [0, 1].map(|i| projector.radius(i).unwrap().value);
    projector.begin(&weights, &anchors).unwrap();
    for pass in 0..2 {
        projector.apply(&mut weights, &anchors).unwrap();
        close_radii(radii(&projector), expected.radii[pass]);
        projector.update(&grads).unwrap();
        let grad = [0, 1].map(|i| projector.trace(i).unwrap().radius_grad.unwrap());
        close("radius gradient", &grad, &expected.grad);
    }
    projector.finish(&mut weights, &anchors).unwrap();
    close_radii(radii(&projector), expected.radii[2]);
    close("w", &weights[0], &expected.weight);
    close("b", &weights[1], &expected.bias);
}

#[test]
fn tpgm_with_mars_norms() {
    run_tpgm(&TpgmVector {
        norm: Norm::Mars,
        radii: [[0.2, 0.35], [0.19, 0.36], [0.18, 0.37]],
        grad: [0.250_000_3, -1.571_428_4],
        weight: [1.135, 1.955, 3.045, 4.135],
        bias: [0.658_571, -0.711_429],
    });
}

#[test]
fn tpgm_with_l2_norms() {
    run_tpgm(&TpgmVector {
        norm: Norm::L2,
        radii: [[0.353_553_4, 0.25], [0.363_553_3, 0.26], [0.373_553_3, 0.27]],
        grad: [-0.424_263_9, -2.2],
        weight: [1.158_485, 1.947_172, 3.105_657, 4.316_970],
        bias: [0.662, -0.716],
    });
}

/// Gradients of w, b and h at steps 1 to 4.
const GRADS: [([f64; 4], [f64; 2], f64); 4] = [
    ([0.5, -1.0, 0.25, 2.0], [1.0, -0.5], 0.7),
    ([0.4, -0.8, -0.3, 1.0], [0.6, -0.1], 0.2),
    ([-0.6, 0.3, -0.9, -1.2], [-0.6, 0.9], -0.4),
    ([-0.2, 0.1, 0.1, -0.2], [0.05, 0.2], 0.1),
];

struct Run {
    optimizer: Optimizer,
    weights: Vec<Vec<f64>>,
    anchors: Vec<Option<Vec<f64>>>,
    steps: usize,
}

impl Run {
    fn new(rule: impl Into<Rule>, constraint: impl Into<Constraint>, groups: Vec<Group>) -> Self {
        let set = ParamSet::builder()
            .tensor("w", [2, 2], DType::F64)
            .tensor("b", [2], DType::F64)
            .tensor("h", [1], DType::F64)
            .groups(groups)
            .build()
            .unwrap();
        let weights = vec![vec![1.0, -2.0, 0.5, 0.25], vec![0.1, -0.2], vec![0.3]];
        Self {
            optimizer: Optimizer::new(&set, rule, constraint).unwrap(),
            anchors: weights.iter().cloned().map(Some).collect(),
            weights,
            steps: 0,
        }
    }

    fn step(&mut self) {
        let (w, b, h) = GRADS[self.steps];
        let grads = [Some(w.to_vec()), Some(b.to_vec()), Some(vec![h])];
        self.optimizer.step(&mut self.weights, &grads, &self.anchors, None, 1.0, None).unwrap();
        self.steps += 1;
    }

    #[track_caller]
    fn expect(&self, w: [f64; 4], b: [f64; 2], h: f64) {
        close("w", &self.weights[0], &w);
        close("b", &self.weights[1], &b);
        close("h", &self.weights[2], &[h]);
    }

    #[track_caller]
    fn expect_radii(&self, expected: [f64; 2]) {
        close_radii([0, 1].map(|i| self.optimizer.radius(i).unwrap().value), expected);
    }
}

fn nesterov() -> Sgd {
    Sgd::default().lr(0.1).momentum(0.9).nesterov()
}

fn head_excluded() -> Vec<Group> {
    vec![Group::new("h").excluded()]
}

#[test]
fn ftp_in_sgd() {
    let mut run = Run::new(nesterov(), Ftp::default(), head_excluded());
    run.step();
    run.expect([1.0, -2.0, 0.5, 0.249_999_99], [0.099_999_99, -0.2], 0.167_000_01);
    run.expect_radii([1e-8, 1e-8]);
    run.step();
    run.expect(
        [0.997_519_55, -1.995_039_11, 0.500_703_45, 0.243_262_08],
        [0.094_298_36, -0.198_260_28],
        0.072_300_01,
    );
    run.expect_radii([0.007_441_377_7, 0.007_441_378_2]);
    run.step();
    run.expect(
        [1.002_441_88, -1.995_097_76, 0.507_122_28, 0.249_778_14],
        [0.099_502_36, -0.204_700_96],
        0.081_070_01,
    );
    run.expect_radii([0.007_344_164_9, 0.005_198_597_4]);
    run.step();
    run.expect(
        [1.001_677_04, -1.994_702_34, 0.503_419_16, 0.246_444_45],
        [0.097_713_51, -0.202_440_28],
        0.033_963_02,
    );
    run.expect_radii([0.006_974_725_5, 0.004_726_772_7]);
}

#[test]
fn ftp_with_k_0_lets_the_radius_only_grow() {
    let ftp = Ftp { k: 0.0, ..Ftp::default() };
    let mut run = Run::new(nesterov(), ftp, head_excluded());
    for expected in [
        [1e-8, 1e-8],
        [0.007_441_377_7, 0.007_441_378_2],
        [0.013_193_577_5, 0.013_193_577_5],
        [0.017_905_429, 0.019_814_394_4],
    ] {
        run.step();
        run.expect_radii(expected);
    }
}

#[test]
fn ftp_in_adam() {
    let rule = AdamW::default().lr(0.01).weight_decay(0.1);
    let mut run = Run::new(rule, Ftp::default(), head_excluded());
    run.step();
    run.step();
    close("w", &run.weights[0], &[0.996_442_79, -1.996_115_8, 0.500_658_63, 0.243_217_27]);
    run.step();
    run.step();
    run.expect(
        [0.999_522_86, -1.997_998_83, 0.501_273_51, 0.248_795_14],
        [0.098_858_84, -0.200_395_9],
        0.274_825_84,
    );
    run.expect_radii([0.002_478_352_5, 0.001_537_049_9]);
}

#[test]
fn spd_with_strength_1() {
    let mut run = Run::new(AdamW::default().lr(0.01), Spd { strength: 1.0 }, vec![]);
    run.step();
    let trace = run.optimizer.trace(0).unwrap();
    assert_eq!(trace.spd_ratio, None, "nothing is decayed at the anchor");
    run.step();
    run.expect(
        [0.980_118_75, -1.980_118_75, 0.491_429_45, 0.230_678_2],
        [0.080_425_1, -0.181_969_58],
        0.281_512_26,
    );
    run.step();
    run.expect(
        [0.981_638_37, -1.977_478_15, 0.498_022_94, 0.230_276_27],
        [0.077_874_64, -0.185_210_11],
        0.281_512_26,
    );
    run.step();
    run.expect(
        [0.983_849_64, -1.975_845_58, 0.502_300_14, 0.230_308_43],
        [0.075_828_47, -0.188_864_04],
        0.278_645_01,
    );
}

#[test]
fn spd_without_strength_is_plain_adam() {
    let mut run = Run::new(AdamW::default().lr(0.01), Spd { strength: 0.0 }, vec![]);
    for _ in 0..4 {
        run.step();
    }
    run.expect(
        [0.979_249_89, -1.969_698_31, 0.502_274_63, 0.225_094_88],
        [0.073_555_42, -0.187_587_22],
        0.275_974_45,
    );
}
