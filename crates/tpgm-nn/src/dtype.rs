//! Element types of candle and of `tpgm-core`, and slices of candle's memory on the host: what a layer of your own needs to
//! hand candle's tensors to code that works on slices.

use candle_core::CpuStorage;
use tpgm_core::{DType, Slice};

/// The element type in the words of `tpgm-core`; nothing for integers and other types that cannot be trained.
pub fn core_dtype(dtype: candle_core::DType) -> Option<DType> {
    match dtype {
        candle_core::DType::F64 => Some(DType::F64),
        candle_core::DType::F32 => Some(DType::F32),
        candle_core::DType::F16 => Some(DType::F16),
        candle_core::DType::BF16 => Some(DType::BF16),
        _ => None,
    }
}

/// The same element type in candle's words.
pub fn candle_dtype(dtype: DType) -> candle_core::DType {
    match dtype {
        DType::F64 => candle_core::DType::F64,
        DType::F32 => candle_core::DType::F32,
        DType::F16 => candle_core::DType::F16,
        DType::BF16 => candle_core::DType::BF16,
    }
}

/// All elements of CPU storage, if they are of a type that can be trained.
pub fn cpu_slice(storage: &CpuStorage) -> Option<Slice<'_>> {
    Some(match storage {
        CpuStorage::F64(data) => data.as_slice().into(),
        CpuStorage::F32(data) => data.as_slice().into(),
        CpuStorage::F16(data) => data.as_slice().into(),
        CpuStorage::BF16(data) => data.as_slice().into(),
        _ => return None,
    })
}
