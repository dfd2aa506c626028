//! Element types of candle and of `tpgm-core`, and slices of candle's memory on the host: what a layer of your own needs to
//! hand candle's tensors to code that works on slices.

use candle_core::{CpuStorage, Tensor};
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

/// A tensor in another element type: [`Tensor::to_dtype`], also for tensors without elements. On a GPU candle casts these
/// with a launch of no blocks, which CUDA refuses.
///
/// # Errors
///
/// The device fails.
pub fn cast(tensor: &Tensor, dtype: candle_core::DType) -> candle_core::Result<Tensor> {
    match tensor.elem_count() {
        0 => Tensor::zeros(tensor.shape(), dtype, tensor.device()),
        _ => tensor.to_dtype(dtype),
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType as Candle, Device};

    use super::*;

    #[test]
    fn casts_keep_shapes_and_values() {
        for (shape, elements) in [(vec![2, 2], 4), (vec![0, 3], 0)] {
            let tensor = Tensor::full(1.5f32, shape.as_slice(), &Device::Cpu).unwrap();
            let cast = cast(&tensor, Candle::BF16).unwrap();
            assert_eq!((cast.dims(), cast.dtype()), (shape.as_slice(), Candle::BF16));
            let back = cast.to_dtype(Candle::F32).unwrap().flatten_all().unwrap();
            assert_eq!(back.to_vec1::<f32>().unwrap(), vec![1.5; elements]);
        }
    }
}
