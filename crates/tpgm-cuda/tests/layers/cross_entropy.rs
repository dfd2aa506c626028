use tpgm_cuda::layers::{CrossEntropy, CrossEntropyGradients, CrossEntropyOperands, LabelType, Target};

use super::{
    Backend, DType, Device, Gpu, HostBuffer, LAYOUTS, Layers, Matrix, OnDevice, TYPES, WIDTHS, assert_near,
    largest, numbers, slopes,
};

/// The target of each row, smoothed; nothing for ignored rows.
fn targets(options: CrossEntropy, labels: &[i64], classes: usize) -> Vec<Option<Vec<f64>>> {
    let one_hot = |label: i64| (0..classes).map(|class| f64::from(u8::from(class as i64 == label))).collect();
    labels.iter().map(|&label| (options.ignored != Some(label)).then(|| one_hot(label))).collect()
}

fn smoothed(options: CrossEntropy, target: &[f64]) -> Vec<f64> {
    let uniform = options.smoothing / target.len() as f64;
    target.iter().map(|t| (1.0 - options.smoothing) * t + uniform).collect()
}

/// Losses by row, and the rows that count.
fn forward(options: CrossEntropy, logits: &[f64], targets: &[Option<Vec<f64>>]) -> (Vec<f64>, f64) {
    let classes = logits.len() / targets.len();
    let loss = |(x, target): (&[f64], &Option<Vec<f64>>)| {
        let Some(target) = target else { return 0.0 };
        let most = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let log_total = most + x.iter().map(|x| (x - most).exp()).sum::<f64>().ln();
        smoothed(options, target).iter().zip(x).map(|(t, x)| t * (log_total - x)).sum()
    };
    let losses = logits.chunks(classes).zip(targets).map(loss).collect();
    (losses, targets.iter().flatten().count() as f64)
}

fn mean(options: CrossEntropy, logits: &[f64], targets: &[Option<Vec<f64>>]) -> f64 {
    let (losses, count) = forward(options, logits, targets);
    losses.iter().sum::<f64>() / count
}

fn gradient(options: CrossEntropy, logits: &[f64], targets: &[Option<Vec<f64>>], grad: f64) -> Vec<f64> {
    let classes = logits.len() / targets.len();
    let count = targets.iter().flatten().count() as f64;
    let row = |(x, target): (&[f64], &Option<Vec<f64>>)| -> Vec<f64> {
        let Some(target) = target else { return vec![0.0; classes] };
        let target = smoothed(options, target);
        let (mass, most) = (target.iter().sum::<f64>(), x.iter().copied().fold(f64::NEG_INFINITY, f64::max));
        let total: f64 = x.iter().map(|x| (x - most).exp()).sum();
        x.iter().zip(target).map(|(x, t)| grad / count * (mass * (x - most).exp() / total - t)).collect()
    };
    logits.chunks(classes).zip(targets).flat_map(row).collect()
}

/// Runs both passes: the state (sum, count, mean and losses) and the gradient.
fn run<D: Device>(
    gpu: &Gpu<D>,
    options: CrossEntropy,
    logits: &Matrix<D>,
    target: Target<'_>,
    dtype: DType,
    grad: f64,
) -> (Vec<f64>, Vec<f64>) {
    let layers = Layers::on(gpu.device().clone());
    let mut state = gpu.zeros(DType::F32, CrossEntropy::state_len(logits.rows)).unwrap();
    let operands = CrossEntropyOperands { logits: logits.rows(), target, state: state.view_mut() };
    layers.cross_entropy(options, operands).unwrap();
    let grad = gpu.upload(&HostBuffer::from_f64(DType::F32, &[grad])).unwrap();
    let mut d_logits = Matrix::output(gpu, dtype, logits.rows, logits.width, logits.layout);
    let operands = CrossEntropyGradients {
        logits: logits.rows(),
        target,
        state: state.view(),
        grad: grad.view(),
        d_logits: d_logits.rows_mut(),
    };
    layers.cross_entropy_gradient(options, operands).unwrap();
    let mut told = gpu.download(&state).unwrap().to_f64();
    told.truncate(3 + logits.rows);
    (told, d_logits.read(gpu))
}

pub(crate) fn cross_entropy_matches_the_formula<D: Device>(gpu: &Gpu<D>) {
    let kinds = [LabelType::U8, LabelType::U32, LabelType::I64];
    for (i, (classes, dtype)) in
        WIDTHS.iter().flat_map(|&width| TYPES.map(|dtype| (width, dtype))).enumerate()
    {
        let (layout, rows, kind) = (LAYOUTS[i / 2 % 3], 11, kinds[i % 3]);
        let logits = numbers(1, rows * classes, 8.0, dtype);
        let x = Matrix::input(gpu, dtype, &logits, classes, layout);
        let options = CrossEntropy { smoothing: [0.0, 0.1][i % 2], ignored: [None, Some(200)][i / 3 % 2] };
        let mut labels: Vec<i64> = (0..rows as i64).map(|row| row * 23 % classes.min(199) as i64).collect();
        if options.ignored.is_some() {
            (labels[2], labels[10]) = (200, 200);
        }
        let on_device = OnDevice::new(gpu, &labels, kind);
        let context = format!("{options:?} of {classes} classes, {kind:?}, {layout:?}");
        check(
            gpu,
            options,
            &x,
            Target::Labels(on_device.labels()),
            &logits,
            &targets(options, &labels, classes),
            dtype,
            &context,
        );

        // A target need not be a distribution.
        let values = numbers(2, rows * classes, 1.0, dtype);
        let soft = Matrix::input(gpu, dtype, &values, classes, layout);
        let expected: Vec<_> = values.chunks(classes).map(|target| Some(target.to_vec())).collect();
        check(
            gpu,
            options,
            &x,
            Target::Soft(soft.rows()),
            &logits,
            &expected,
            dtype,
            &format!("soft, {context}"),
        );
    }
}

#[expect(clippy::too_many_arguments)] // of a test
fn check<D: Device>(
    gpu: &Gpu<D>,
    options: CrossEntropy,
    x: &Matrix<D>,
    target: Target<'_>,
    logits: &[f64],
    targets: &[Option<Vec<f64>>],
    dtype: DType,
    context: &str,
) {
    let (told, d_logits) = run(gpu, options, x, target, dtype, 0.75);
    let (losses, count) = forward(options, logits, targets);
    let sum: f64 = losses.iter().sum();
    // What is added up may be larger than the sum.
    let mass = targets
        .iter()
        .flatten()
        .map(|target| target.iter().map(|t| t.abs()).sum::<f64>())
        .fold(1.0, f64::max);
    let scale = 20.0 * mass;
    assert_eq!(told[1], count, "{context}");
    assert_near(&told[3..], &losses, DType::F32, scale, context);
    assert_near(&[told[0], told[2]], &[sum, sum / count], DType::F32, 11.0 * scale, context);
    let expected = gradient(options, logits, targets, 0.75);
    assert_near(&d_logits, &expected, dtype, 4.0 * largest(&expected).max(0.1), context);
}

pub(crate) fn gradients_of_cross_entropy_are_slopes<D: Device>(_: &Gpu<D>) {
    let logits = numbers(1, 12, 4.0, DType::F32);
    let options = CrossEntropy { smoothing: 0.1, ignored: Some(-100) };
    let targets = targets(options, &[1, -100, 3], 4);
    let got = gradient(options, &logits, &targets, 1.0);
    let slopes = slopes(&logits, &[1.0], |x| vec![mean(options, x, &targets)]);
    assert!(got.iter().zip(&slopes).all(|(a, b)| (a - b).abs() < 1e-8), "{got:?} {slopes:?}");
}

/// The host sees no labels: a label that is no class shows in the loss and in the gradient of its row.
pub(crate) fn labels_that_are_no_class_make_the_mean_nan<D: Device>(gpu: &Gpu<D>) {
    let logits = numbers(1, 12, 4.0, DType::F32);
    let x = Matrix::input(gpu, DType::F32, &logits, 4, LAYOUTS[0]);
    let options = CrossEntropy { smoothing: 0.0, ignored: Some(-100) };
    for label in [4, -1, i64::MAX, i64::MIN] {
        let labels = OnDevice::new(gpu, &[0, label, -100], LabelType::I64);
        let (told, d_logits) = run(gpu, options, &x, Target::Labels(labels.labels()), DType::F32, 1.0);
        assert!(told[2].is_nan() && told[4].is_nan() && told[3].is_finite(), "{label}: {told:?}");
        assert!(d_logits[4..8].iter().all(|dx| dx.is_nan()) && d_logits[8..] == [0.0; 4], "{d_logits:?}");
    }
    let labels = OnDevice::new(gpu, &[-100; 3], LabelType::I64);
    let (told, d_logits) = run(gpu, options, &x, Target::Labels(labels.labels()), DType::F32, 1.0);
    assert!(told[..2] == [0.0, 0.0] && told[2].is_nan() && d_logits == [0.0; 12], "{told:?}");
    // What is not finite among the logits is not lost.
    for (bad, columns) in [(f64::NAN, 3..4), (f64::INFINITY, 3..4), (f64::NAN, 0..4)] {
        let mut logits = logits.clone();
        logits[columns].fill(bad);
        let x = Matrix::input(gpu, DType::F32, &logits, 4, LAYOUTS[0]);
        let labels = OnDevice::new(gpu, &[0, 1, 2], LabelType::U32);
        let (told, _) = run(gpu, options, &x, Target::Labels(labels.labels()), DType::F32, 1.0);
        assert!(!told[2].is_finite() && !told[3].is_finite() && told[4].is_finite(), "{bad}: {told:?}");
    }
}
