use tpgm_cuda::layers::{Pairs, RotaryOperands, Turn};

use super::{Backend, DType, Device, Gpu, HostBuffer, Layers, TYPES, assert_near, numbers, slopes};

/// Batches, heads, steps and width.
type Shape = [usize; 4];

/// One pair; rows that can be read four pairs at a time, and that cannot; more rows than a block has threads.
const SHAPES: [Shape; 6] =
    [[1, 1, 1, 2], [2, 3, 4, 6], [1, 2, 3, 16], [2, 1, 5, 66], [2, 3, 40, 8], [1, 1, 3, 128]];

/// How the rows of `x` lie in memory.
#[derive(Debug, Clone, Copy)]
enum Order {
    /// One behind the other.
    Rows,
    /// Heads of a step beside each other, as a linear layer makes them, in rows that are wider by some elements.
    Beside(usize),
}

fn strides([_, heads, steps, width]: Shape, order: Order) -> [usize; 3] {
    match order {
        Order::Rows => [heads * steps * width, steps * width, width],
        Order::Beside(gap) => {
            let step = heads * width + gap;
            [steps * step, width, step]
        }
    }
}

/// Cosine and sine of each row's step, from tables of more steps than there are.
struct Angles {
    cos: Vec<f64>,
    sin: Vec<f64>,
    stride: usize,
}

impl Angles {
    fn new([batches, _, steps, width]: Shape, of_batch: bool, dtype: DType) -> Self {
        let (rows, tables) = (steps + 2, if of_batch { batches } else { 1 });
        let angles = numbers(3, tables * rows * width / 2, 3.0, DType::F32);
        let of = |f: fn(f64) -> f64| {
            HostBuffer::from_f64(dtype, &angles.iter().map(|&x| f(x)).collect::<Vec<_>>()).to_f64()
        };
        Self { cos: of(f64::cos), sin: of(f64::sin), stride: if of_batch { rows * width / 2 } else { 0 } }
    }
}

/// Rows in order, rotated.
fn rotated(
    pairs: Pairs,
    turn: Turn,
    [_, heads, steps, width]: Shape,
    x: &[f64],
    angles: &Angles,
) -> Vec<f64> {
    let half = width / 2;
    let sign = if turn == Turn::Forward { 1.0 } else { -1.0 };
    let mut y = vec![0.0; x.len()];
    for (row, (x, y)) in x.chunks(width).zip(y.chunks_mut(width)).enumerate() {
        let start = row / (heads * steps) * angles.stride + row % steps * half;
        for i in 0..half {
            let (cos, sin) = (angles.cos[start + i], sign * angles.sin[start + i]);
            let (a, b) = if pairs == Pairs::Halves { (i, i + half) } else { (2 * i, 2 * i + 1) };
            y[a] = x[a] * cos - x[b] * sin;
            y[b] = x[a] * sin + x[b] * cos;
        }
    }
    y
}

pub(crate) fn rotations_match_the_formula<D: Device>(gpu: &Gpu<D>) {
    let layers = Layers::on(gpu.device().clone());
    let orders = [Order::Rows, Order::Beside(0), Order::Beside(3), Order::Beside(8)];
    let cases = SHAPES.iter().flat_map(|&shape| TYPES.map(|dtype| (shape, dtype)));
    for (i, ((shape, dtype), pairs)) in
        cases.flat_map(|case| [Pairs::Halves, Pairs::Interleaved].map(|pairs| (case, pairs))).enumerate()
    {
        let order = orders[i / 2 % 4];
        let turn = if i / 8 % 2 == 0 { Turn::Forward } else { Turn::Back };
        let (angles, strides) = (Angles::new(shape, i % 3 == 1, dtype), strides(shape, order));
        let offset = [0, 4, 1][i / 2 % 3];
        let [batches, heads, steps, width] = shape;
        let values = numbers(1, shape.iter().product(), 2.0, dtype);
        // What is not a row is not to be read.
        let mut spread = vec![f64::NAN; offset + batches * strides[0].max(heads * strides[1])];
        for (row, x) in values.chunks(width).enumerate() {
            let (step, head, batch) = (row % steps, row / steps % heads, row / (steps * heads));
            let start = offset + batch * strides[0] + head * strides[1] + step * strides[2];
            spread[start..start + width].copy_from_slice(x);
        }
        let upload = |values: &[f64]| gpu.upload(&HostBuffer::from_f64(dtype, values)).unwrap();
        let (x, cos, sin) = (upload(&spread), upload(&angles.cos), upload(&angles.sin));
        let mut y = gpu.zeros(dtype, values.len()).unwrap();
        let operands = RotaryOperands {
            shape,
            x: x.view().slice(offset..spread.len()),
            strides,
            cos: cos.view(),
            sin: sin.view(),
            angles_stride: angles.stride,
            y: y.view_mut(),
        };
        layers.rotary(pairs, turn, operands).unwrap();
        let context = format!("{pairs:?}, {turn:?} of {shape:?}, {order:?} from {offset}");
        let expected = rotated(pairs, turn, shape, &values, &angles);
        assert_near(&gpu.download(&y).unwrap().to_f64(), &expected, dtype, 2.0, &context);
    }
}

/// The gradient is the rotation back.
pub(crate) fn gradients_of_rotations_are_slopes<D: Device>(_: &Gpu<D>) {
    let shape = [1, 2, 3, 6];
    let (x, grad) = (numbers(1, 36, 2.0, DType::F32), numbers(2, 36, 1.0, DType::F32));
    let angles = Angles::new(shape, false, DType::F32);
    for pairs in [Pairs::Halves, Pairs::Interleaved] {
        let got = rotated(pairs, Turn::Back, shape, &grad, &angles);
        let slopes = slopes(&x, &grad, |x| rotated(pairs, Turn::Forward, shape, x, &angles));
        assert!(got.iter().zip(&slopes).all(|(a, b)| (a - b).abs() < 1e-8), "{got:?} {slopes:?}");
    }
}

pub(crate) fn rotations_refuse_what_does_not_fit<D: Device>(gpu: &Gpu<D>) {
    let layers = Layers::on(gpu.device().clone());
    let (x, angles) = (gpu.zeros(DType::F32, 24).unwrap(), gpu.zeros(DType::F32, 6).unwrap());
    let half = gpu.zeros(DType::BF16, 6).unwrap();
    let mut y = gpu.zeros(DType::F32, 24).unwrap();
    let mut error = |shape, strides, cos, angles_stride| {
        let (x, sin, y) = (x.view(), angles.view(), y.view_mut());
        let operands = RotaryOperands { shape, x, strides, cos, sin, angles_stride, y };
        layers.rotary(Pairs::Halves, Turn::Forward, operands).map_err(|error| error.to_string())
    };
    assert_eq!(error([1, 2, 3, 4], [24, 12, 4], angles.view(), 0), Ok(()));
    assert_eq!(
        error([1, 2, 3, 4], [24, 13, 4], angles.view(), 0).unwrap_err(),
        "rotary embedding: `x` has 24 elements, but [1, 2, 3, 4] with strides [24, 13, 4], angles 0 apart, are needed"
    );
    assert!(error([2, 1, 3, 4], [12, 12, 4], angles.view(), 1).unwrap_err().contains("`cos` has 6 elements"));
    assert!(error([1, 1, 3, 4], [24, 12, 4], angles.view(), 0).unwrap_err().contains("`y` has 6 rows of 4"));
    assert_eq!(
        error([1, 1, 8, 3], [24, 24, 3], angles.view(), 0).unwrap_err(),
        "rotary embedding: `x` has rows of 3, but an even width is needed"
    );
    assert_eq!(
        error([1, 2, 3, 4], [24, 12, 4], half.view(), 0).unwrap_err(),
        "rotary embedding: `cos` is bf16, but must be f32 as the others"
    );
}
