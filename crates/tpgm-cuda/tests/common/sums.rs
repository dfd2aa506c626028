//! How exact sums are, and that compiled-in types give what the CPU gives.

use tpgm_core::{AdamW, Buffer, DType, Optimizer, ParamSet, Spd, StepOptions, TensorIo};
use tpgm_core::{Backend, Cpu, Ema};
use tpgm_cuda::{Device, Gpu, Reports};

use super::{Problem, assert_close, methods, numbers};

/// The sum and the sum of magnitudes. Products of two f32 are exact in f64, and what their sum rounds off is kept (Neumaier).
fn exact(products: impl Iterator<Item = f64>) -> (f64, f64) {
    let (mut sum, mut lost, mut magnitude) = (0.0_f64, 0.0_f64, 0.0_f64);
    for x in products {
        let next = sum + x;
        lost += if sum.abs() >= x.abs() { (sum - next) + x } else { (x - next) + sum };
        sum = next;
        magnitude += x.abs();
    }
    (sum + lost, magnitude)
}

/// The sum of products is wrong by at most 2^-40 of the sum of their magnitudes: where they cancel, where they are too small or
/// too large for f32, and where one thread has both.
pub(crate) fn sums_are_nearly_exact<D: Device>(gpu: &Gpu<D>) {
    let gpu = gpu.clone().reports(Reports::AtOnce);
    let wide: &[fn(usize) -> f64] = &[
        |_| 1.0,
        |_| 1e-30, // products are zero in f32
        |_| 1e-22, // products are denormal in f32
        |_| 1e25,  // products are infinite in f32
        |i| if i % 5 == 0 { 1e25 } else { 1e-25 },
        |i| if i % 7 == 0 { 1.0 } else { 0.0 },
        |i| if i < 3000 { 0.0 } else { 1e-21 },
    ];
    let narrow: &[fn(usize) -> f64] = &[|_| 1.0, |_| 1e-4, |i| if i % 7 == 0 { 100.0 } else { 0.0 }];
    let cases = [
        (DType::F32, DType::F32, wide),
        (DType::BF16, DType::BF16, wide),
        (DType::BF16, DType::F32, wide),
        (DType::F16, DType::F16, narrow),
        (DType::F16, DType::F32, narrow),
        (DType::F32, DType::BF16, wide),
    ];
    for (dtype, anchor_dtype, scales) in cases {
        for (s, scale) in scales.iter().enumerate() {
            let shape = [43, 123];
            let len = shape[0] * shape[1];
            let scaled = |seed, size| -> Vec<f64> {
                numbers(seed, len, size).iter().enumerate().map(|(i, x)| x * scale(i)).collect()
            };
            let grad = Buffer::from_f64(dtype, &scaled(1, 1.0));
            let weight = Buffer::from_f64(dtype, &scaled(2, 1.0));
            let anchor = Buffer::from_f64(anchor_dtype, &scaled(3, 0.5));
            let d: Vec<f64> = weight
                .to_f64()
                .iter()
                .zip(anchor.to_f64())
                .map(|(&w, a)| f64::from(w as f32 - a as f32))
                .collect();
            let g = grad.to_f64();
            let (dot, magnitude) = exact(g.iter().zip(&d).map(|(g, d)| g * d));
            let (square, _) = exact(g.iter().map(|g| g * g));

            let set = ParamSet::builder().tensor("w", shape, dtype).build().unwrap();
            let mut optimizer = Optimizer::new(gpu.clone(), &set, AdamW::default(), Spd::default()).unwrap();
            let (mut weight, grad, anchor) =
                (gpu.upload(&weight).unwrap(), gpu.upload(&grad).unwrap(), gpu.upload(&anchor).unwrap());
            let io = TensorIo {
                weight: weight.view_mut(),
                grad: Some(grad.view()),
                anchor: Some(anchor.view()),
                variance: None,
            };
            let options = StepOptions { max_grad_norm: Some(1e300), ..StepOptions::default() };
            let context = format!("{dtype:?}, anchors {anchor_dtype:?}, scales {s}");
            let report =
                optimizer.step(&mut [io], &options).unwrap_or_else(|error| panic!("{context}: {error}"));
            let norm = report.grad_norm.unwrap();
            let error = (norm / square.sqrt() - 1.0).abs();
            assert!(error <= 2f64.powi(-40), "{context}: norm {norm:e}, wrong by {error:e}");
            let alignment = optimizer.scalars().unwrap()[0].alignment;
            let error = (alignment + dot).abs() / magnitude;
            assert!(error <= 2f64.powi(-40), "{context}: {alignment:e}, not {:e}: wrong by {error:e}", -dot);
        }
    }
}

/// Sets of one half type with f32 anchors have kernels of their own, and so have f32 averages of them.
pub(crate) fn halves_with_f32_anchors_match_the_cpu<D: Device>(gpu: &Gpu<D>) {
    for dtype in [DType::BF16, DType::F16] {
        let piece = gpu.chunk();
        let shapes: [&[usize]; 5] = [&[8, 20], &[8, 21], &[3, 2 * piece + 5], &[piece + 3], &[0, 4]];
        let tensors: Vec<_> = shapes.iter().map(|&shape| (shape, dtype, DType::F32)).collect();
        let problem = Problem::new(&tensors);
        for (rule, constraint) in methods() {
            let options = StepOptions::default();
            let (expected, _) = problem.run(&Cpu::new(), rule, constraint, &options, 4);
            let (got, _) = problem.run(gpu, rule, constraint, &options, 4);
            for (t, (got, expected)) in got.iter().zip(&expected).enumerate() {
                assert_close(got, expected, dtype, &format!("{rule:?} under {constraint:?}, tensor {t}"));
            }
        }

        let set = ParamSet::builder().tensor("w", [7, 33], dtype).build().unwrap();
        let weights: Vec<_> = (0..3).map(|seed| Buffer::from_f64(dtype, &numbers(seed, 231, 2.0))).collect();
        let on_gpu: Vec<_> = weights.iter().map(|weight| gpu.upload(weight).unwrap()).collect();
        let mut average = Ema::new(gpu.clone(), &set, &[on_gpu[0].view()]).unwrap();
        let mut expected = weights[0].to_f64();
        for (weight, on_gpu) in weights.iter().zip(&on_gpu).skip(1) {
            average.update(&[on_gpu.view()], 0.9).unwrap();
            expected = expected.iter().zip(weight.to_f64()).map(|(e, w)| 0.9 * e + 0.1 * w).collect();
        }
        let got = gpu.download(&average.averages()[0]).unwrap();
        assert_eq!(got.dtype(), DType::F32);
        assert_close(&got.to_f64(), &expected, DType::F32, "average");
    }
}
