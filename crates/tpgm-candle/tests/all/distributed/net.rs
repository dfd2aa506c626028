//! A small network, the same on all ranks.

use candle_core::{DType, Device, Tensor, Var};
use tpgm_candle::core::EngineOptions;
use tpgm_candle::distributed::Communicator;
use tpgm_candle::{OptimizerBuilder, Param, Params};

pub(crate) const ROWS: usize = 24;

/// Deterministic numbers in (-1, 1).
pub(crate) fn tensor(seed: u64, shape: &[usize]) -> Tensor {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        (x >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    let numbers: Vec<f32> = (0..shape.iter().product()).map(|_| next()).collect();
    Tensor::from_vec(numbers, shape, &Device::Cpu).unwrap()
}

/// A two-layer network, and a data set of [`ROWS`] rows.
pub(crate) struct Net {
    pub(crate) params: Params,
    pub(crate) vars: Vec<Var>,
}

impl Net {
    pub(crate) fn new(dtype: DType) -> Self {
        Self::of(16, dtype)
    }

    /// One whose first tensor is cut by rows, if a piece of work has 8 elements and the constraint allows it: see [`cut`].
    pub(crate) fn wide(dtype: DType) -> Self {
        Self::of(300, dtype)
    }

    fn of(hidden: usize, dtype: DType) -> Self {
        let shapes: [(&str, &[usize]); 4] =
            [("a.weight", &[hidden, 8]), ("a.bias", &[hidden]), ("b.weight", &[4, hidden]), ("b.bias", &[4])];
        let var = |seed, shape| Var::from_tensor(&tensor(seed, shape).to_dtype(dtype).unwrap()).unwrap();
        let vars: Vec<Var> = (1..).zip(&shapes).map(|(seed, (_, shape))| var(seed, shape)).collect();
        let named = shapes.iter().zip(&vars);
        let params = named.map(|((name, _), var)| Param::anchored_here(*name, var.clone()).unwrap());
        Self { params: Params::from_params(params).unwrap(), vars }
    }

    /// Mean squared error on some rows of data set `seed`.
    pub(crate) fn loss(&self, seed: u64, rows: std::ops::Range<usize>) -> candle_core::Result<Tensor> {
        let part = |t: Tensor| t.narrow(0, rows.start, rows.len())?.to_dtype(self.vars[0].dtype());
        let (x, y) = (part(tensor(seed, &[ROWS, 8]))?, part(tensor(seed + 1, &[ROWS, 4]))?);
        let linear = |h: &Tensor, i: usize| h.matmul(&self.vars[i].t()?)?.broadcast_add(&self.vars[i + 1]);
        (linear(&linear(&x, 0)?.tanh()?, 2)? - y)?.sqr()?.mean_all()
    }

    pub(crate) fn values(&self) -> Vec<f64> {
        self.vars.iter().flat_map(|var| numbers(var)).collect()
    }

    pub(crate) fn bits(&self) -> Vec<u64> {
        self.values().into_iter().map(f64::to_bits).collect()
    }
}

/// Pieces of work so small that tensors of [`Net::wide`] have too many for one rank.
pub(crate) fn cut(builder: OptimizerBuilder) -> OptimizerBuilder {
    builder.engine(EngineOptions::default().chunk(8))
}

pub(crate) fn numbers(tensor: &Tensor) -> Vec<f64> {
    tensor.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// The rows of a rank's part of a batch.
pub(crate) fn part(communicator: &dyn Communicator) -> std::ops::Range<usize> {
    let rows = ROWS / communicator.size();
    rows * communicator.rank()..rows * (communicator.rank() + 1)
}
