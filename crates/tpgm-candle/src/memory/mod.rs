//! The memory of candle's tensors: element types, slices on the host, sums in place, the pool of a GPU.

mod add;
mod error;
#[cfg(feature = "cuda")]
pub(crate) mod events;
mod host;
mod pool;

use std::cell::RefCell;
use std::collections::HashMap;
use std::ops::Range;

use candle_core::{CpuStorage, Device, InplaceOp1, Layout, Shape, Storage, Tensor, Var};
use tpgm_core::{Buffer, DType, Real, Slice, SliceMut};
pub(crate) use tpgm_nn::dtype::{candle_dtype, cast, cpu_slice};

pub(crate) use self::add::{Add, BLOCK};
pub use self::error::{Error, Result};
pub(crate) use self::host::{Elements, overwrite};
pub use self::pool::keep_freed_memory;

/// The element type of a tensor that is trained.
pub(crate) fn core_dtype(tensor: &str, dtype: candle_core::DType) -> Result<DType> {
    tpgm_nn::dtype::core_dtype(dtype).ok_or_else(|| Error::ElementType { tensor: tensor.to_owned(), dtype })
}

/// Copies a tensor to the host.
pub(crate) fn to_buffer(name: &str, tensor: &Tensor) -> Result<Buffer> {
    let flat = tensor.flatten_all()?;
    Ok(match core_dtype(name, tensor.dtype())? {
        DType::F64 => Buffer::F64(flat.to_vec1()?),
        DType::F32 => Buffer::F32(flat.to_vec1()?),
        DType::F16 => Buffer::F16(flat.to_vec1()?),
        DType::BF16 => Buffer::BF16(flat.to_vec1()?),
    })
}

/// Copies host data to a tensor.
pub(crate) fn to_tensor(data: Slice<'_>, shape: impl Into<Shape>, device: &Device) -> Result<Tensor> {
    let shape = shape.into();
    Ok(match data {
        Slice::F64(data) => Tensor::from_slice(data, shape, device)?,
        Slice::F32(data) => Tensor::from_slice(data, shape, device)?,
        Slice::F16(data) => Tensor::from_slice(data, shape, device)?,
        Slice::BF16(data) => Tensor::from_slice(data, shape, device)?,
    })
}

/// Copies host data to a variable.
pub(crate) fn to_var(data: Slice<'_>, shape: impl Into<Shape>, device: &Device) -> Result<Var> {
    Ok(match data {
        Slice::F64(data) => Var::from_slice(data, shape, device)?,
        Slice::F32(data) => Var::from_slice(data, shape, device)?,
        Slice::F16(data) => Var::from_slice(data, shape, device)?,
        Slice::BF16(data) => Var::from_slice(data, shape, device)?,
    })
}

/// The elements of a tensor, if it is contiguous, on the host and of a type that can be trained.
pub(crate) fn cpu_elements<'a>(storage: &'a Storage, layout: &Layout) -> Option<Slice<'a>> {
    let (start, end) = layout.contiguous_offsets()?;
    match storage {
        Storage::Cpu(storage) => cpu_slice(storage).map(|slice| slice.sub(start..end)),
        _ => None,
    }
}

/// The elements of a tensor's storage, to write them.
pub(crate) fn cpu_slice_mut<'a>(
    storage: &'a mut CpuStorage,
    layout: &Layout,
) -> candle_core::Result<SliceMut<'a>> {
    let strided = candle_core::Error::RequiresContiguous { op: "writing in place" };
    let (start, end) = layout.contiguous_offsets().ok_or(strided)?;
    Ok(match storage {
        CpuStorage::F64(data) => SliceMut::F64(&mut data[start..end]),
        CpuStorage::F32(data) => SliceMut::F32(&mut data[start..end]),
        CpuStorage::F16(data) => SliceMut::F16(&mut data[start..end]),
        CpuStorage::BF16(data) => SliceMut::BF16(&mut data[start..end]),
        _ => candle_core::bail!("only f64, f32, f16 and bf16 can be trained"),
    })
}

/// Lets `fill` write the elements of a contiguous tensor on the host, in place.
pub(crate) fn overwrite_cpu(
    tensor: &Tensor,
    mut fill: impl FnMut(SliceMut<'_>) -> tpgm_core::Result<()>,
) -> Result<()> {
    Ok(tensor.inplace_op1(&Overwrite(RefCell::new(&mut fill)))?)
}

type Fill<'a> = &'a mut dyn FnMut(SliceMut<'_>) -> tpgm_core::Result<()>;

struct Overwrite<'a>(RefCell<Fill<'a>>);

impl InplaceOp1 for Overwrite<'_> {
    fn name(&self) -> &'static str {
        "overwrite"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> candle_core::Result<()> {
        (self.0.borrow_mut())(cpu_slice_mut(storage, layout)?).map_err(candle_core::Error::wrap)
    }
}

/// Copies elements, rounding where the types differ. Both have the same length.
pub(crate) fn copy_elements(source: Slice<'_>, target: SliceMut<'_>) {
    match (source, target) {
        (Slice::F64(source), target) => f64::store(source, target),
        (Slice::F32(source), target) => f32::store(source, target),
        (Slice::F16(source), SliceMut::F16(target)) => target.copy_from_slice(source),
        (Slice::BF16(source), SliceMut::BF16(target)) => target.copy_from_slice(source),
        (half, target) => {
            let mut wide = vec![0.0; half.len()];
            f32::load(half, &mut wide);
            f32::store(&wide, target);
        }
    }
}

/// Tells whether tensors have elements in common.
#[derive(Default)]
pub(crate) struct Apart(HashMap<usize, Vec<Range<usize>>>);

impl Apart {
    /// Whether a contiguous tensor has no element that one before it has.
    pub(crate) fn insert(&mut self, tensor: &Tensor) -> bool {
        let start = tensor.layout().start_offset();
        let elements = start..start + tensor.elem_count();
        let earlier = self.0.entry(storage_key(tensor)).or_default();
        let apart = earlier.iter().all(|other| elements.end <= other.start || other.end <= elements.start);
        earlier.push(elements);
        apart
    }
}

/// Equal for tensors that share memory.
pub(crate) fn storage_key(tensor: &Tensor) -> usize {
    let (storage, _) = tensor.storage_and_layout();
    std::ptr::from_ref::<Storage>(&storage).addr()
}
