//! The layers' kernels against formulas in f64, on any device: awkward sizes, strides and offsets, every element type.
#![allow(clippy::unwrap_used)] // helpers of tests

mod activation;
mod batch_norm;
mod cross_entropy;
mod dropout;
mod embedding;
mod norm;
mod pool;
mod rotary;
mod softmax;

use tpgm_core::{Backend, Buffer as HostBuffer, DType};
use tpgm_cuda::layers::{LabelType, Labels, Layers, Rows, RowsMut};
use tpgm_cuda::{Buffer, Device, Gpu, View, ViewMut};

pub(crate) use self::activation::{
    activations_hold_at_the_ends, activations_match_the_formula, gated_products_match_the_formula,
    gradients_of_biases_are_sums,
};
pub(crate) use self::batch_norm::{
    batch_norms_match_the_formula, batch_norms_refuse_what_does_not_fit, gradients_of_batch_norms_are_slopes,
    running_statistics_stay_finite_and_the_same_on_any_blocks,
};
pub(crate) use self::cross_entropy::{
    cross_entropy_matches_the_formula, gradients_of_cross_entropy_are_slopes,
    labels_that_are_no_class_make_the_mean_nan,
};
pub(crate) use self::dropout::{
    dropout_refuses_what_does_not_fit, masks_are_functions_of_seed_draw_and_index,
    the_generator_of_masks_is_the_published_one,
};
pub(crate) use self::embedding::{
    any_number_of_blocks_gives_the_same_embedding, embeddings_refuse_what_does_not_fit,
    gradients_of_embeddings_are_sums,
};
pub(crate) use self::norm::{
    any_number_of_blocks_gives_the_same_gradients, gradients_of_norms_are_slopes,
    gradients_of_norms_match_the_formula, norms_match_the_formula, norms_refuse_what_does_not_fit,
};
pub(crate) use self::pool::{
    maxima_and_their_gradients_are_those_of_windows, windows_that_do_not_fit_are_refused,
};
pub(crate) use self::rotary::{
    gradients_of_rotations_are_slopes, rotations_match_the_formula, rotations_refuse_what_does_not_fit,
};
pub(crate) use self::softmax::{
    gradients_of_softmax_are_slopes, masks_hide_keys, masks_that_do_not_fit_are_refused,
    softmax_matches_the_formula,
};

/// The element types of layers.
const TYPES: [DType; 3] = [DType::F32, DType::BF16, DType::F16];

/// Numbers in `(-scale, scale)`, as the element type has them.
fn numbers(seed: u64, len: usize, scale: f64, dtype: DType) -> Vec<f64> {
    HostBuffer::from_f64(dtype, &crate::common::numbers(seed, len, scale)).to_f64()
}

/// How rows lie in memory: elements in front of the first, and behind each.
#[derive(Debug, Clone, Copy)]
struct Layout {
    offset: usize,
    gap: usize,
}

/// Without gaps; starts that no vector can be read at; and gaps that keep the alignment.
const LAYOUTS: [Layout; 3] =
    [Layout { offset: 0, gap: 0 }, Layout { offset: 1, gap: 2 }, Layout { offset: 4, gap: 8 }];

/// Rows on a device. What is between them is not to be read (NaN in inputs) or written (a number that is looked for).
struct Matrix<D: Device> {
    buffer: Buffer<D>,
    rows: usize,
    width: usize,
    layout: Layout,
}

const UNTOUCHED: f64 = 77.0;

impl<D: Device> Matrix<D> {
    fn filled(
        gpu: &Gpu<D>,
        dtype: DType,
        values: &[f64],
        width: usize,
        layout: Layout,
        between: f64,
    ) -> Self {
        let mut all = vec![between; layout.offset];
        for row in values.chunks(width) {
            all.extend(row);
            all.extend(vec![between; layout.gap]);
        }
        let buffer = gpu.upload(&HostBuffer::from_f64(dtype, &all)).unwrap();
        Self { buffer, rows: values.len() / width, width, layout }
    }

    fn input(gpu: &Gpu<D>, dtype: DType, values: &[f64], width: usize, layout: Layout) -> Self {
        Self::filled(gpu, dtype, values, width, layout, f64::NAN)
    }

    fn output(gpu: &Gpu<D>, dtype: DType, rows: usize, width: usize, layout: Layout) -> Self {
        Self::filled(gpu, dtype, &vec![UNTOUCHED; rows * width], width, layout, UNTOUCHED)
    }

    fn stride(&self) -> usize {
        self.width + self.layout.gap
    }

    fn rows(&self) -> Rows<'_> {
        let view = self.buffer.view();
        Rows::strided(view.slice(self.layout.offset..view.len()), self.rows, self.width, self.stride())
            .unwrap()
    }

    fn rows_mut(&mut self) -> RowsMut<'_> {
        let (rows, width, stride, offset) = (self.rows, self.width, self.stride(), self.layout.offset);
        let view = self.buffer.view_mut();
        let len = view.as_view().len();
        RowsMut::strided(view.slice(offset..len), rows, width, stride).unwrap()
    }

    /// All elements of a vector, which has one row.
    fn view(&self) -> View<'_> {
        self.buffer.view().slice(self.layout.offset..self.layout.offset + self.width)
    }

    fn view_mut(&mut self) -> ViewMut<'_> {
        let (offset, width) = (self.layout.offset, self.width);
        self.buffer.view_mut().slice(offset..offset + width)
    }

    /// The rows; whatever is between them must be as it was.
    fn read(&self, gpu: &Gpu<D>) -> Vec<f64> {
        let all = gpu.download(&self.buffer).unwrap().to_f64();
        let (before, rows) = all.split_at(self.layout.offset);
        let mut values = Vec::new();
        let mut between = before.to_vec();
        for row in rows.chunks(self.stride()) {
            values.extend(&row[..self.width]);
            between.extend(&row[self.width..]);
        }
        assert!(between.iter().all(|&x| x == UNTOUCHED), "written between rows: {between:?}");
        values
    }
}

/// Labels on a device, in bytes of their type.
struct OnDevice<D: Device> {
    memory: D::Memory,
    device: D,
    len: usize,
    kind: LabelType,
}

impl<D: Device> OnDevice<D> {
    fn new(gpu: &Gpu<D>, labels: &[i64], kind: LabelType) -> Self {
        let bytes: Vec<u8> = match kind {
            LabelType::U8 => labels.iter().map(|&label| label as u8).collect(),
            LabelType::U32 => labels.iter().flat_map(|&label| (label as u32).to_ne_bytes()).collect(),
            LabelType::I64 => labels.iter().flat_map(|label| label.to_ne_bytes()).collect(),
        };
        let device = gpu.device().clone();
        let mut memory = device.allocate(bytes.len()).unwrap();
        device.write(&mut memory, 0, &bytes).unwrap();
        Self { memory, device, len: labels.len(), kind }
    }

    fn labels(&self) -> Labels<'_> {
        // SAFETY: the memory is there as long as `self`, and nobody writes it.
        unsafe { Labels::from_raw(self.device.address(&self.memory), self.len, self.kind) }
    }
}

/// Results of sums and functions in f32, rounded once: off by half a unit of the element type, and by a few roundings of f32
/// of the largest number (`scale`) that they are made of.
fn assert_near(got: &[f64], expected: &[f64], dtype: DType, scale: f64, context: &str) {
    assert_eq!(got.len(), expected.len(), "{context}");
    let (half_unit, smallest) = match dtype {
        DType::BF16 => (2f64.powi(-8), 0.0),
        DType::F16 => (2f64.powi(-11), 2f64.powi(-25)),
        _ => (0.0, 0.0),
    };
    for (i, (&got, &expected)) in got.iter().zip(expected).enumerate() {
        let tolerance = 1.01 * half_unit * expected.abs() + smallest + 2e-6 * scale;
        let near =
            (got - expected).abs() <= tolerance || got == expected || (got.is_nan() && expected.is_nan());
        assert!(
            near,
            "{context}, {dtype}: element {i} is {got:e}, not {expected:e} (tolerance {tolerance:e})"
        );
    }
}

fn largest(values: &[f64]) -> f64 {
    values.iter().fold(0.0, |most: f64, x| most.max(x.abs()))
}

/// The slope of `sum(grad * f(x))` at every element of `x`, by central differences.
fn slopes(x: &[f64], grad: &[f64], f: impl Fn(&[f64]) -> Vec<f64>) -> Vec<f64> {
    let total = |x: &[f64]| f(x).iter().zip(grad).map(|(y, g)| y * g).sum::<f64>();
    let step = 1e-5;
    let slope = |i: usize| {
        let moved = |by: f64| {
            let mut x = x.to_vec();
            x[i] += by;
            total(&x)
        };
        (moved(step) - moved(-step)) / (2.0 * step)
    };
    (0..x.len()).map(slope).collect()
}

/// Widths that end inside, at and behind what is read at once, what a warp holds, and what a block of 64 threads holds.
const WIDTHS: [usize; 7] = [1, 3, 4, 37, 260, 1028, 2051];

/// A test of every function of the suite, for the backend that the expression gives, or does not.
#[macro_export]
macro_rules! layers_suite {
    ($backend:expr) => {
        $crate::layers_suite!(@tests $backend,
            norms_match_the_formula,
            gradients_of_norms_match_the_formula,
            gradients_of_norms_are_slopes,
            norms_refuse_what_does_not_fit,
            any_number_of_blocks_gives_the_same_gradients,
            softmax_matches_the_formula,
            masks_hide_keys,
            gradients_of_softmax_are_slopes,
            masks_that_do_not_fit_are_refused,
            cross_entropy_matches_the_formula,
            gradients_of_cross_entropy_are_slopes,
            labels_that_are_no_class_make_the_mean_nan,
            activations_match_the_formula,
            gradients_of_biases_are_sums,
            activations_hold_at_the_ends,
            gated_products_match_the_formula,
            rotations_match_the_formula,
            gradients_of_rotations_are_slopes,
            rotations_refuse_what_does_not_fit,
            the_generator_of_masks_is_the_published_one,
            masks_are_functions_of_seed_draw_and_index,
            dropout_refuses_what_does_not_fit,
            gradients_of_embeddings_are_sums,
            any_number_of_blocks_gives_the_same_embedding,
            embeddings_refuse_what_does_not_fit,
            maxima_and_their_gradients_are_those_of_windows,
            windows_that_do_not_fit_are_refused,
            batch_norms_match_the_formula,
            gradients_of_batch_norms_are_slopes,
            running_statistics_stay_finite_and_the_same_on_any_blocks,
            batch_norms_refuse_what_does_not_fit,
        );
    };
    (@tests $backend:expr, $($name:ident),* $(,)?) => {
        $(
            #[test]
            fn $name() {
                if let Some(backend) = $backend {
                    $crate::layers::$name(&backend);
                }
            }
        )*
    };
}
