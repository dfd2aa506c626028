//! The elements of tensors as slices.

use std::ops::Range;

use candle_core::{Storage, StorageRef, Tensor, Var};
use tpgm_core::{Buffer, Slice, SliceMut};

use super::error::Result;
use super::{core_dtype, cpu_slice, overwrite_cpu, to_buffer, to_tensor};

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
pub(crate) fn overwrite(
    name: &str,
    var: &Var,
    mut fill: impl FnMut(SliceMut<'_>) -> tpgm_core::Result<()>,
) -> Result<()> {
    let dtype = core_dtype(name, var.dtype())?;
    if var.device().is_cpu() {
        return overwrite_cpu(var, fill);
    }
    let mut buffer = Buffer::zeros(dtype, var.elem_count());
    fill(buffer.as_mut())?;
    Ok(var.set(&to_tensor(buffer.as_slice(), var.shape(), var.device())?)?)
}
