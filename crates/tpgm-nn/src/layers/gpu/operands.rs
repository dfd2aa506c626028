//! Operands of kernels: tensors of candle as addresses.

use candle_core::backend::{BackendDevice, BackendStorage};
use candle_core::op::BackpropOp;
use candle_core::{DType, Layout, Result, Shape, Storage, StorageRef, Tensor};
use tpgm_cuda::layers::{LabelType, Labels, Layers, Rows, RowsMut};
use tpgm_cuda::{Device, View, ViewMut};

use super::rows::RowShape;
use crate::dtype::core_dtype;
use crate::layers::fused::Fused;

/// Memory that candle's tensors are in, and kernels that reach it.
pub(in crate::layers) trait Home: Sized {
    /// What runs the kernels.
    type Device: Device;
    /// candle's memory.
    type Storage: BackendStorage<Device: BackendDevice<Storage = Self::Storage>>;
    /// Kept until the calls that use an address are queued.
    type Pending<'a>
    where
        Self: 'a;

    fn layers(&self) -> &Layers<Self::Device>;

    /// The memory, if it is of this kind.
    fn open(storage: &Storage) -> Option<&Self::Storage>;

    /// The opposite of [`Home::open`].
    fn close(storage: Self::Storage) -> Storage;

    /// Where the first element is, to read.
    fn address<'a>(&'a self, storage: &'a Self::Storage) -> Result<(u64, Self::Pending<'a>)>;

    /// Where the first element is, to write.
    fn address_mut<'a>(&'a self, storage: &'a mut Self::Storage) -> Result<(u64, Self::Pending<'a>)>;
}

/// What the kernels refused, in candle's words.
pub(in crate::layers) fn failed(error: tpgm_cuda::layers::Error) -> candle_core::Error {
    candle_core::Error::wrap(error)
}

/// The forward pass of an operation on storages that candle hands over.
pub(in crate::layers) fn forward<H: Home, F: Fused<N>, const N: usize>(
    op: &F,
    on: &H,
    args: [(&H::Storage, &Layout); N],
) -> Result<(H::Storage, Shape)> {
    let mut inputs = Vec::with_capacity(N);
    for (storage, layout) in args {
        inputs.push(Input::new(on, storage, layout)?);
    }
    let Ok(inputs) = <[Input<'_, H>; N]>::try_from(inputs) else { unreachable!("one for each argument") };
    let Fresh { storage, shape } = op.forward_on(on, inputs)?;
    Ok((storage, shape))
}

/// A tensor under candle's read lock, which keeps its memory until calls are queued.
pub(in crate::layers) struct Lock<'a> {
    guard: StorageRef<'a>,
    layout: &'a Layout,
}

impl<'a> Lock<'a> {
    pub(in crate::layers) fn new(tensor: &'a Tensor) -> Self {
        let (guard, layout) = tensor.storage_and_layout();
        Self { guard, layout }
    }

    pub(in crate::layers) fn input<'b, H: Home>(&'b self, on: &'b H) -> Result<Input<'b, H>> {
        match H::open(&self.guard) {
            Some(storage) => Input::new(on, storage, self.layout),
            None => candle_core::bail!("a tensor is not on the device of the others"),
        }
    }
}

/// A tensor to read. Kernels that use it are queued before it is dropped.
pub(in crate::layers) struct Input<'a, H: Home + 'a> {
    pub(in crate::layers) storage: &'a H::Storage,
    pub(in crate::layers) layout: &'a Layout,
    address: u64,
    _pending: H::Pending<'a>,
}

impl<'a, H: Home> Input<'a, H> {
    pub(super) fn new(on: &'a H, storage: &'a H::Storage, layout: &'a Layout) -> Result<Self> {
        let (address, pending) = on.address(storage)?;
        Ok(Self { storage, layout, address, _pending: pending })
    }

    pub(in crate::layers) fn shape(&self) -> &'a Shape {
        self.layout.shape()
    }

    pub(in crate::layers) fn dtype(&self) -> DType {
        self.storage.dtype()
    }

    /// `len` elements, `start` elements behind the first of the memory.
    fn view(&self, start: usize, len: usize) -> Result<View<'_>> {
        let Some(dtype) = core_dtype(self.dtype()) else {
            candle_core::bail!("kernels compute with floating point types; got {:?}", self.dtype())
        };
        let address = self.address + (start * dtype.size()) as u64;
        // SAFETY: the elements are some of the tensor's, by its layout, in memory that the borrow of the storage keeps and that
        // the home's kernels reach. Nobody writes it: candle writes tensors that are in use by nobody else, and what has written
        // this one is ahead on the stream.
        Ok(unsafe { View::from_raw(address, len, dtype) })
    }

    /// Its rows.
    pub(in crate::layers) fn rows(&self) -> Result<Rows<'_>> {
        let shape = self.row_shape()?;
        let view = self.view(shape.start, shape.span())?;
        Rows::strided(view, shape.rows, shape.width, shape.stride).map_err(failed)
    }

    /// Rows of its last dimension, with the elements from one to the next in each of the three dimensions before.
    pub(in crate::layers) fn steps(&self) -> Result<(View<'_>, [usize; 3])> {
        let (&[a, b, c, width], &[of_a, of_b, of_c, step]) = (self.layout.dims(), self.layout.stride())
        else {
            candle_core::bail!("four dimensions are needed; got {:?}", self.layout.dims())
        };
        if width > 1 && step != 1 {
            return Err(candle_core::Error::RequiresContiguous { op: "a kernel of a layer" }.bt());
        }
        let last = |count: usize, step: usize| count.saturating_sub(1) * step;
        let span = last(a, of_a) + last(b, of_b) + last(c, of_c) + width;
        let span = if a * b * c == 0 { 0 } else { span };
        Ok((self.view(self.layout.start_offset(), span)?, [of_a, of_b, of_c]))
    }

    /// Its elements, one behind the other.
    pub(in crate::layers) fn elements(&self) -> Result<View<'_>> {
        let (start, end) = self.contiguous()?;
        self.view(start, end - start)
    }

    /// Its elements as labels.
    pub(in crate::layers) fn labels(&self) -> Result<Labels<'_>> {
        let (start, end) = self.contiguous()?;
        let kind = match self.dtype() {
            DType::U8 => LabelType::U8,
            DType::U32 => LabelType::U32,
            DType::I64 => LabelType::I64,
            other => candle_core::bail!("labels must be u8, u32 or i64; got {other:?}"),
        };
        let address = self.address + (start * self.dtype().size_in_bytes()) as u64;
        // SAFETY: as in `view`.
        Ok(unsafe { Labels::from_raw(address, end - start, kind) })
    }

    fn row_shape(&self) -> Result<RowShape> {
        RowShape::of(self.layout)
            .ok_or_else(|| candle_core::Error::RequiresContiguous { op: "a kernel of a layer" }.bt())
    }

    fn contiguous(&self) -> Result<(usize, usize)> {
        let offsets = self.layout.contiguous_offsets();
        offsets.ok_or_else(|| candle_core::Error::RequiresContiguous { op: "a kernel of a layer" }.bt())
    }
}

/// Memory for a result, which a kernel fills.
pub(in crate::layers) struct Fresh<H: Home> {
    pub(in crate::layers) storage: H::Storage,
    pub(in crate::layers) shape: Shape,
}

impl<H: Home> Fresh<H> {
    /// Memory on the device of another tensor. Whoever asks for it has all of it written, or drops it.
    pub(in crate::layers) fn beside(
        storage: &H::Storage,
        shape: impl Into<Shape>,
        dtype: DType,
    ) -> Result<Self> {
        let shape = shape.into();
        // SAFETY: see above.
        let storage = unsafe { storage.device().alloc_uninit(&shape, dtype) }?;
        Ok(Self { storage, shape })
    }

    /// Memory for a tensor of the same shape and type.
    pub(in crate::layers) fn like(input: &Input<'_, H>) -> Result<Self> {
        Self::beside(input.storage, input.shape().clone(), input.dtype())
    }

    /// [`Fresh::like`] if it is wanted.
    pub(in crate::layers) fn wanted(wanted: bool, input: &Input<'_, H>) -> Result<Option<Self>> {
        wanted.then(|| Self::like(input)).transpose()
    }

    pub(in crate::layers) fn output<'a>(&'a mut self, on: &'a H) -> Result<Output<'a, H>> {
        let (len, width) = (self.shape.elem_count(), self.shape.dims().last().copied().unwrap_or(1));
        let Some(dtype) = core_dtype(self.storage.dtype()) else {
            candle_core::bail!("kernels compute with floating point types; got {:?}", self.storage.dtype())
        };
        let (address, pending) = on.address_mut(&mut self.storage)?;
        Ok(Output { address, len, width, dtype, _pending: pending })
    }

    /// [`Fresh::output`] of what is wanted.
    pub(in crate::layers) fn outputs<'a>(
        wanted: &'a mut Option<Self>,
        on: &'a H,
    ) -> Result<Option<Output<'a, H>>> {
        wanted.as_mut().map(|fresh| fresh.output(on)).transpose()
    }

    /// The result, outside of any graph.
    pub(in crate::layers) fn into_tensor(self) -> Tensor {
        Tensor::from_storage(H::close(self.storage), self.shape, BackpropOp::none(), false)
    }
}

/// Memory to write. Kernels that use it are queued before it is dropped.
pub(in crate::layers) struct Output<'a, H: Home + 'a> {
    address: u64,
    len: usize,
    width: usize,
    dtype: tpgm_core::DType,
    _pending: H::Pending<'a>,
}

impl<H: Home> Output<'_, H> {
    /// Its elements, one behind the other.
    pub(in crate::layers) fn elements(&mut self) -> ViewMut<'_> {
        // SAFETY: so many elements were allocated, by candle on the device that the home's kernels run on, and nobody else has
        // them yet.
        unsafe { ViewMut::from_raw(self.address, self.len, self.dtype) }
    }

    /// Its rows, of its last dimension.
    pub(in crate::layers) fn rows(&mut self) -> Result<RowsMut<'_>> {
        let width = self.width;
        RowsMut::new(self.elements(), width).map_err(failed)
    }
}
