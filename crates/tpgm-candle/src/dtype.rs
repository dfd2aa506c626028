//! Element types of candle and of `tpgm-core`.

use candle_core::{CpuStorage, Device, Shape, Tensor, Var};
use tpgm_core::{Buffer, DType, Slice};

use crate::error::{Error, Result};

/// The element type of a tensor that is trained.
pub(crate) fn core_dtype(tensor: &str, dtype: candle_core::DType) -> Result<DType> {
    match dtype {
        candle_core::DType::F64 => Ok(DType::F64),
        candle_core::DType::F32 => Ok(DType::F32),
        candle_core::DType::F16 => Ok(DType::F16),
        candle_core::DType::BF16 => Ok(DType::BF16),
        dtype => Err(Error::ElementType { tensor: tensor.to_owned(), dtype }),
    }
}

/// The same element type in candle's words.
pub(crate) fn candle_dtype(dtype: DType) -> candle_core::DType {
    match dtype {
        DType::F64 => candle_core::DType::F64,
        DType::F32 => candle_core::DType::F32,
        DType::F16 => candle_core::DType::F16,
        DType::BF16 => candle_core::DType::BF16,
    }
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

/// The elements of CPU storage, if they are of a type that can be trained.
pub(crate) fn cpu_slice(storage: &CpuStorage) -> Option<Slice<'_>> {
    Some(match storage {
        CpuStorage::F64(data) => data.as_slice().into(),
        CpuStorage::F32(data) => data.as_slice().into(),
        CpuStorage::F16(data) => data.as_slice().into(),
        CpuStorage::BF16(data) => data.as_slice().into(),
        _ => return None,
    })
}
