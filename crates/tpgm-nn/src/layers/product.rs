//! Matrix products: a batch in parallel, transposed factors read where they are, gradients only where they are wanted.

use candle_core::backend::{BackendDevice, BackendStorage};
use candle_core::cpu_backend::CpuDevice;
use candle_core::op::BackpropOp;
use candle_core::{CpuStorage, DType, Layout, Result, Shape, Storage, Tensor};
use tpgm_core::Element;

use super::check::{Path, same_kind, shape_error};
use super::composed;
use super::fused::{Arg, Fused, apply2};
#[cfg(any(feature = "cuda", test))]
use super::gpu::{Fresh, Home, Input, joins};
use super::storage::{Operand, PIECE, by_dtype, data, fill, into_storage, typed_mut};

/// `x y` of the matrices in the last two dimensions: (..., m, k) and (..., k, n) give (..., m, n).
///
/// # Errors
///
/// If the leading dimensions or the inner ones differ, or element types or devices do.
pub fn matmul(x: &Tensor, y: &Tensor) -> Result<Tensor> {
    apply(x, y, Product { transposed: false })
}

/// `x y^T` of the matrices in the last two dimensions: (..., m, k) and (..., n, k) give (..., m, n).
///
/// # Errors
///
/// As for [`matmul`].
pub fn matmul_transposed(x: &Tensor, y: &Tensor) -> Result<Tensor> {
    apply(x, y, Product { transposed: true })
}

fn apply(x: &Tensor, y: &Tensor, op: Product) -> Result<Tensor> {
    same_kind(op.name(), &[x, y])?;
    let fits = match (x.dims(), y.dims()) {
        ([x_batch @ .., _, k], [y_batch @ .., rows, columns]) => {
            x_batch == y_batch && *k == if op.transposed { *columns } else { *rows }
        }
        _ => false,
    };
    if !fits {
        let expected = "leading dimensions must be equal, and the inner ones";
        return Err(shape_error(op.name(), expected, &[x, y]));
    }
    match (Path::with_kernels(x), op.transposed) {
        // Products take whole matrices.
        (Path::Fused, _) => apply2(op, &x.contiguous()?, &y.contiguous()?),
        (Path::Composed, false) => composed::matmul(x, y),
        (Path::Composed, true) => composed::matmul_transposed(x, y),
    }
}

#[derive(Debug)]
pub(super) struct Product {
    pub(super) transposed: bool,
}

impl Fused<2> for Product {
    fn kernels(&self) -> bool {
        true
    }

    #[cfg(any(feature = "cuda", test))]
    fn forward_on<H: Home>(&self, _: &H, [x, y]: [Input<'_, H>; 2]) -> Result<Fresh<H>> {
        joins::product(self, [&x, &y], [false, self.transposed])
    }

    #[cfg(any(feature = "cuda", test))]
    fn backward_on<H: Home>(
        &self,
        on: &H,
        [x, y]: [&Tensor; 2],
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<[Option<Tensor>; 2]> {
        joins::product_gradients(self, on, [x, y], &grad.contiguous()?)
    }

    fn name(&self) -> &'static str {
        if self.transposed { "matmul-transposed" } else { "matmul" }
    }

    fn forward(&self, args: [Arg<'_>; 2]) -> Result<(CpuStorage, Shape)> {
        let mut shape = args[0].dims().to_vec();
        let [x, y] = args.map(|arg| Factor::batch(arg.storage, arg.layout));
        let y = if self.transposed { y.t() } else { y };
        let (m, n) = (x.size().0, y.size().1);
        let rank = shape.len();
        shape[rank - 2..].copy_from_slice(&[m, n]);
        Ok((product(self.name(), x, y)?, shape.into()))
    }

    fn backward(&self, [x, y]: [&Tensor; 2], _: &Tensor, grad: &Tensor) -> Result<[Option<Tensor>; 2]> {
        let [x_data, y_data, grad] = [x, y, grad].map(|tensor| Operand::new(self.name(), tensor));
        let (x_data, y_data, grad) = (x_data.storage()?, y_data.storage()?, grad.storage()?);
        let batch = |(storage, layout)| Factor::batch(storage, layout);
        let (x_data, y_data, grad) = (batch(x_data), batch(y_data), batch(grad));
        let gradient = |of, a, b| gradient(self.name(), of, a, b);
        Ok(match self.transposed {
            false => [gradient(x, grad, y_data.t())?, gradient(y, x_data.t(), grad)?],
            true => [gradient(x, grad, y_data)?, gradient(y, grad.t(), x_data)?],
        })
    }
}

/// Matrices that lie one after the other.
#[derive(Debug, Clone, Copy)]
pub(super) struct Factor<'a> {
    storage: &'a CpuStorage,
    start: usize,
    batch: usize,
    rows: usize,
    columns: usize,
    transposed: bool,
}

impl<'a> Factor<'a> {
    /// The matrices in the last two dimensions of a contiguous tensor.
    pub(super) fn batch(storage: &'a CpuStorage, layout: &Layout) -> Self {
        let (leading, last) = layout.dims().split_at(layout.dims().len() - 2);
        let batch = leading.iter().product();
        let start = layout.start_offset();
        Self { storage, start, batch, rows: last[0], columns: last[1], transposed: false }
    }

    /// One matrix, of all dimensions but the last by the last, of a contiguous tensor.
    pub(super) fn matrix(storage: &'a CpuStorage, layout: &Layout) -> Self {
        let (leading, last) = layout.dims().split_at(layout.dims().len() - 1);
        let rows = leading.iter().product();
        let start = layout.start_offset();
        Self { storage, start, batch: 1, rows, columns: last[0], transposed: false }
    }

    /// The transposed matrices.
    pub(super) fn t(self) -> Self {
        Self { transposed: !self.transposed, ..self }
    }

    fn size(&self) -> (usize, usize) {
        if self.transposed { (self.columns, self.rows) } else { (self.rows, self.columns) }
    }

    /// Where `count` of the matrices are.
    fn layout(&self, first: usize, count: usize) -> Result<Layout> {
        let start = self.start + first * self.rows * self.columns;
        let layout = Layout::contiguous_with_offset((count, self.rows, self.columns), start);
        if self.transposed { layout.transpose(1, 2) } else { Ok(layout) }
    }
}

/// The products of two batches that fit. A batch of more than one is shared out; candle computes one product after the
/// other, and small ones on one thread.
pub(super) fn product(op: &'static str, x: Factor<'_>, y: Factor<'_>) -> Result<CpuStorage> {
    let ((m, k), (_, n)) = (x.size(), y.size());
    let (batch, len) = (x.batch, m * n);
    if batch * len * k == 0 {
        return CpuDevice.zeros_impl(&(batch, m, n).into(), x.storage.dtype());
    }
    let some = |first: usize, count: usize| {
        x.storage.matmul(y.storage, (count, m, n, k), &x.layout(first, count)?, &y.layout(first, count)?)
    };
    // For each product in bf16, candle first widens all of the storage.
    if batch == 1 || x.storage.dtype() == DType::BF16 {
        return some(0, batch);
    }
    by_dtype!(data(op, x.storage)?.dtype(), T, _C => {
        let piece = (PIECE / len).max(1) * len;
        let (out, done) = fill::<T, Result<()>>(batch * len, piece, |range, out| {
            let mut products = some(range.start / len, out.len() / len)?;
            let products = typed_mut::<T>(&mut products).expect("products have the type of their factors");
            out.copy_from_slice(products);
            Ok(())
        });
        done.into_iter().collect::<Result<()>>()?;
        Ok(into_storage(T::buffer(out)))
    })
}

/// The gradient of a tensor, which is this [`product`], if anybody wants it.
pub(super) fn gradient(
    op: &'static str,
    of: &Tensor,
    x: Factor<'_>,
    y: Factor<'_>,
) -> Result<Option<Tensor>> {
    if !of.track_op() {
        return Ok(None);
    }
    let storage = Storage::Cpu(product(op, x, y)?);
    Ok(Some(Tensor::from_storage(storage, of.shape(), BackpropOp::none(), false)))
}
