//! The elements of tensors as slices.

use std::cell::RefCell;
use std::ops::Range;

use candle_core::{CpuStorage, InplaceOp1, Layout, Storage, StorageRef, Tensor, Var};
use tpgm_core::{Buffer, Slice, SliceMut};

use crate::dtype::{core_dtype, cpu_slice, to_buffer, to_tensor};
use crate::error::Result;

/// The elements of a tensor, row-major: borrowed where they lie so on the host, else copied.
pub(crate) enum Elements<'a> {
    Borrowed(StorageRef<'a>, Range<usize>),
    Copied(Buffer),
}

impl<'a> Elements<'a> {
    /// Holds a read lock of the tensor's storage where it borrows: write to no variable that shares it meanwhile.
    pub(crate) fn new(name: &str, tensor: &'a Tensor) -> Result<Self> {
        let (storage, layout) = tensor.storage_and_layout();
        if let Some((start, end)) = layout.contiguous_offsets()
            && borrowed(&storage).is_some()
        {
            return Ok(Self::Borrowed(storage, start..end));
        }
        drop(storage);
        Ok(Self::Copied(to_buffer(name, tensor)?))
    }

    pub(crate) fn slice(&self) -> Slice<'_> {
        match self {
            Self::Borrowed(storage, range) => {
                borrowed(storage).expect("checked when it was borrowed").sub(range.clone())
            }
            Self::Copied(buffer) => buffer.as_slice(),
        }
    }
}

fn borrowed(storage: &Storage) -> Option<Slice<'_>> {
    match storage {
        Storage::Cpu(storage) => cpu_slice(storage),
        _ => None,
    }
}

/// Lets `fill` write the elements of a variable: in place on the CPU, through a copy elsewhere.
pub(super) fn overwrite(
    name: &str,
    var: &Var,
    mut fill: impl FnMut(SliceMut<'_>) -> tpgm_core::Result<()>,
) -> Result<()> {
    let dtype = core_dtype(name, var.dtype())?;
    if var.device().is_cpu() {
        return Ok(var.inplace_op1(&Overwrite(RefCell::new(&mut fill)))?);
    }
    let mut buffer = Buffer::zeros(dtype, var.elem_count());
    fill(buffer.as_mut())?;
    Ok(var.set(&to_tensor(buffer.as_slice(), var.shape(), var.device())?)?)
}

type Fill<'a> = &'a mut dyn FnMut(SliceMut<'_>) -> tpgm_core::Result<()>;

struct Overwrite<'a>(RefCell<Fill<'a>>);

impl InplaceOp1 for Overwrite<'_> {
    fn name(&self) -> &'static str {
        "overwrite"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> candle_core::Result<()> {
        // A variable is contiguous whatever it was made from.
        let (start, end) = layout
            .contiguous_offsets()
            .ok_or(candle_core::Error::RequiresContiguous { op: "overwrite" }.bt())?;
        let elements: SliceMut<'_> = match storage {
            CpuStorage::F64(data) => data[start..end].as_mut().into(),
            CpuStorage::F32(data) => data[start..end].as_mut().into(),
            CpuStorage::F16(data) => data[start..end].as_mut().into(),
            CpuStorage::BF16(data) => data[start..end].as_mut().into(),
            _ => candle_core::bail!("overwrite: elements of this type cannot be written"),
        };
        (self.0.borrow_mut())(elements).map_err(candle_core::Error::wrap)
    }
}
