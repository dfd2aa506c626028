use tpgm_cuda::layers::{MaxPool, MaxPoolGradients};

use super::{Backend, DType, Device, Gpu, HostBuffer, Layers, TYPES, assert_near, numbers};

/// Planes, their size, and windows: side by side, overlapping, with gaps, of one element, of the whole plane.
type Case = (usize, [usize; 2], [[usize; 2]; 3]);

const CASES: [Case; 6] = [
    (1, [1, 1], [[1, 1], [1, 1], [0, 0]]),
    (3, [5, 7], [[2, 2], [2, 2], [0, 0]]),
    (2, [7, 6], [[3, 3], [2, 2], [1, 1]]),
    (2, [5, 9], [[2, 3], [3, 1], [1, 0]]),
    (3, [4, 4], [[4, 4], [1, 1], [0, 0]]),
    (2, [9, 13], [[3, 5], [1, 2], [0, 2]]),
];

/// The maximum of each window, and the gradient of the input: walked by hand.
fn by_hand(
    &(planes, [height, width], [kernel, stride, padding]): &Case,
    x: &[f64],
    grad: &[f64],
) -> [Vec<f64>; 2] {
    let (mut y, mut dx) = (vec![], vec![0.0; x.len()]);
    for plane in 0..planes {
        let mut top = -(padding[0] as i64);
        while top + kernel[0] as i64 <= (height + padding[0]) as i64 {
            let mut left = -(padding[1] as i64);
            while left + kernel[1] as i64 <= (width + padding[1]) as i64 {
                let mut best: Option<usize> = None;
                for row in top.max(0)..(top + kernel[0] as i64).min(height as i64) {
                    for column in left.max(0)..(left + kernel[1] as i64).min(width as i64) {
                        let at = (plane * height + row as usize) * width + column as usize;
                        if best.is_none_or(|best| x[at] > x[best] || x[at].is_nan()) {
                            best = Some(at);
                        }
                    }
                }
                let best = best.unwrap();
                dx[best] += grad.get(y.len()).copied().unwrap_or(0.0);
                y.push(x[best]);
                left += stride[1] as i64;
            }
            top += stride[0] as i64;
        }
    }
    [y, dx]
}

fn pool([kernel, stride, padding]: [[usize; 2]; 3]) -> MaxPool {
    MaxPool { kernel, stride, padding }
}

pub(crate) fn maxima_and_their_gradients_are_those_of_windows<D: Device>(gpu: &Gpu<D>) {
    let layers = Layers::on(gpu.device().clone());
    for (i, (case, dtype)) in CASES.iter().flat_map(|case| TYPES.map(|dtype| (case, dtype))).enumerate() {
        let &(planes, size, windows) = case;
        let len = planes * size[0] * size[1];
        let mut x = numbers(1, len, 2.0, dtype);
        // Equal elements; and whole windows of minus infinities.
        x.iter_mut().for_each(|x| *x = x.round());
        if i % 4 == 3 {
            x.iter_mut().take(len / 2).for_each(|x| *x = f64::NEG_INFINITY);
        }
        let outputs = by_hand(case, &x, &[])[0].len();
        let grad = numbers(2, outputs, 1.0, dtype);
        let [expected, gradient] = by_hand(case, &x, &grad);
        let upload = |values: &[f64]| gpu.upload(&HostBuffer::from_f64(dtype, values)).unwrap();
        let (on_x, on_grad) = (upload(&x), upload(&grad));
        let (mut y, mut dx) = (gpu.zeros(dtype, outputs).unwrap(), upload(&vec![77.0; len]));
        layers.max_pool(pool(windows), planes, size, on_x.view(), y.view_mut()).unwrap();
        assert_eq!(gpu.download(&y).unwrap().to_f64(), expected, "{case:?}");
        let operands = MaxPoolGradients { x: on_x.view(), grad: on_grad.view(), dx: dx.view_mut() };
        layers.max_pool_gradient(pool(windows), planes, size, operands).unwrap();
        assert_near(&gpu.download(&dx).unwrap().to_f64(), &gradient, dtype, 4.0, &format!("{case:?}"));
    }
    // A NaN is the maximum of all windows that it is in.
    let x = gpu.upload(&HostBuffer::from_f64(DType::F32, &[1.0, f64::NAN, 3.0, 4.0])).unwrap();
    let mut y = gpu.zeros(DType::F32, 3).unwrap();
    let windows = pool([[1, 2], [1, 1], [0, 0]]);
    layers.max_pool(windows, 1, [1, 4], x.view(), y.view_mut()).unwrap();
    let y = gpu.download(&y).unwrap().to_f64();
    assert!(y[0].is_nan() && y[1].is_nan() && y[2] == 4.0, "{y:?}");
}

pub(crate) fn windows_that_do_not_fit_are_refused<D: Device>(gpu: &Gpu<D>) {
    let layers = Layers::on(gpu.device().clone());
    let (x, mut y) = (gpu.zeros(DType::F32, 12).unwrap(), gpu.zeros(DType::F32, 2).unwrap());
    let mut error = |size, windows| {
        let result = layers.max_pool(pool(windows), 1, size, x.view(), y.view_mut());
        result.map_err(|error| error.to_string())
    };
    assert_eq!(error([3, 4], [[2, 2], [2, 2], [0, 0]]), Ok(()));
    assert_eq!(
        error([3, 5], [[2, 2], [2, 2], [0, 0]]).unwrap_err(),
        "max-pool: `x` has 12 elements, but 15 are needed"
    );
    assert_eq!(
        error([4, 3], [[2, 2], [1, 2], [0, 0]]).unwrap_err(),
        "max-pool: `y` has 2 elements, but 3 are needed"
    );
    for windows in [
        [[0, 2], [1, 1], [0, 0]],
        [[2, 2], [0, 1], [0, 0]],
        [[2, 2], [1, 1], [2, 0]],
        [[4, 1], [1, 1], [0, 0]],
    ] {
        assert!(error([3, 4], windows).unwrap_err().contains("a window"), "{windows:?}");
    }
}
