//! Carries operands to a backend and results back, and compares them.

use crate::backend::{Backend, TensorIo, Variance};
use crate::element::{Buffer, DType};
use crate::error::Result;
use crate::params::TensorSpec;

/// Operands of a set in a backend's memory. Every operand starts one element into its memory: no vector is aligned.
pub(super) struct Fixture<B: Backend> {
    backend: B,
    specs: Vec<TensorSpec>,
    weights: Vec<B::Buffer>,
    grads: Vec<Option<B::Buffer>>,
    anchors: Vec<Option<B::Buffer>>,
    variances: Vec<Option<(B::Buffer, B::Buffer)>>,
}

/// Elements before every operand.
const OFFSET: usize = 1;

fn shifted(dtype: DType, values: &[f64]) -> Buffer {
    let padded: Vec<f64> = std::iter::repeat_n(0.0, OFFSET).chain(values.iter().copied()).collect();
    Buffer::from_f64(dtype, &padded)
}

fn view<B: Backend>(buffer: &B::Buffer) -> B::Ref<'_> {
    let (_, len) = B::describe(B::as_ref(buffer));
    B::view(buffer, OFFSET..len)
}

fn view_mut<B: Backend>(buffer: &mut B::Buffer) -> B::Mut<'_> {
    let (_, len) = B::describe(B::as_ref(buffer));
    B::view_mut(buffer, OFFSET..len)
}

impl<B: Backend + Clone> Fixture<B> {
    pub(super) fn new(
        backend: &B,
        specs: &[TensorSpec],
        weights: &[Vec<f64>],
        anchors: &[Option<Vec<f64>>],
        anchor_dtype: DType,
    ) -> Self {
        let upload = |dtype, values: &Vec<f64>| backend.upload(&shifted(dtype, values)).expect("upload");
        Self {
            backend: backend.clone(),
            specs: specs.to_vec(),
            weights: weights.iter().zip(specs).map(|(weight, spec)| upload(spec.dtype, weight)).collect(),
            grads: specs.iter().map(|_| None).collect(),
            anchors: anchors.iter().map(|a| a.as_ref().map(|a| upload(anchor_dtype, a))).collect(),
            variances: specs.iter().map(|_| None).collect(),
        }
    }

    pub(super) fn set_grads(&mut self, grads: &[Option<Vec<f64>>]) {
        let upload = |dtype, values: &Vec<f64>| self.backend.upload(&shifted(dtype, values)).expect("upload");
        self.grads = grads
            .iter()
            .zip(&self.specs)
            .map(|(g, spec)| g.as_ref().map(|g| upload(spec.dtype, g)))
            .collect();
    }

    pub(super) fn set_variances(&mut self, variances: &[Option<(Vec<f64>, Vec<f64>)>]) {
        let upload = |values: &Vec<f64>| self.backend.upload(&shifted(DType::F32, values)).expect("upload");
        self.variances =
            variances.iter().map(|v| v.as_ref().map(|(now, anchor)| (upload(now), upload(anchor)))).collect();
    }

    pub(super) fn run<R>(&mut self, call: impl FnOnce(&mut [TensorIo<'_, B>]) -> Result<R>) -> Result<R> {
        let operands = self.weights.iter_mut().zip(&self.grads).zip(&self.anchors).zip(&self.variances);
        let mut io: Vec<TensorIo<'_, B>> = operands
            .map(|(((weight, grad), anchor), variance)| TensorIo {
                weight: view_mut::<B>(weight),
                grad: grad.as_ref().map(view::<B>),
                anchor: anchor.as_ref().map(view::<B>),
                variance: variance
                    .as_ref()
                    .map(|(now, anchor)| Variance { current: view::<B>(now), anchor: view::<B>(anchor) }),
            })
            .collect();
        call(&mut io)
    }

    pub(super) fn weights(&self) -> Vec<Vec<f64>> {
        let download = |buffer| {
            let values = self.backend.download(buffer).expect("download").to_f64();
            assert!(values[..OFFSET].iter().all(|&x| x == 0.0), "wrote before the start of a tensor");
            values[OFFSET..].to_vec()
        };
        self.weights.iter().map(download).collect()
    }
}

/// How far results may be from the oracle's: `absolute + relative * |expected|`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tolerance {
    pub(super) absolute: f64,
    pub(super) relative: f64,
}

impl Tolerance {
    /// For weights, after a few steps of the suite's problems.
    pub(super) fn weights(dtype: DType) -> Self {
        let (absolute, relative) = match dtype {
            DType::F64 => (1e-13, 1e-12),
            DType::F32 => (2e-6, 1e-5),
            // One unit in the last place.
            DType::F16 => (2e-6, 2.0f64.powi(-10)),
            DType::BF16 => (2e-6, 2.0f64.powi(-7)),
        };
        Self { absolute, relative }
    }

    /// For weights that are rounded before they are pulled back, and again after: one unit in the last place of the
    /// suite's largest weights, which are below 1.
    pub(super) fn without_masters(dtype: DType) -> Self {
        let absolute = match dtype {
            DType::F16 => 2.0f64.powi(-11),
            DType::BF16 => 2.0f64.powi(-8),
            DType::F64 | DType::F32 => 0.0,
        };
        Self { absolute, ..Self::weights(dtype) }
    }

    /// For radii, norms and other scalars.
    pub(super) fn scalars(dtype: DType) -> Self {
        let (absolute, relative) = match dtype.compute() {
            DType::F64 => (1e-12, 1e-10),
            _ => (5e-6, 2e-4),
        };
        Self { absolute, relative }
    }

    #[track_caller]
    pub(super) fn check(self, got: f64, expected: f64, context: impl Fn() -> String) {
        let allowed = self.absolute + self.relative * expected.abs();
        assert!(
            (got - expected).abs() <= allowed || got == expected,
            "{}: {got:e}, the oracle has {expected:e} (allowed {allowed:.1e})",
            context()
        );
    }

    #[track_caller]
    pub(super) fn check_all(self, got: &[f64], expected: &[f64], context: impl Fn() -> String) {
        assert_eq!(got.len(), expected.len(), "{}", context());
        for (i, (&got, &expected)) in got.iter().zip(expected).enumerate() {
            self.check(got, expected, || format!("{} element {i}", context()));
        }
    }
}
