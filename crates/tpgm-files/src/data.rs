//! The elements of a tensor in a file.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use bytemuck::cast_slice;
use half::{bf16, f16};
use memmap2::Mmap;
use tpgm_core::{Buffer, DType, Slice};

/// A pre-trained value on the host, owned or inside a memory-mapped checkpoint. Cheap to clone.
#[derive(Clone)]
pub struct AnchorData {
    data: Data,
}

#[derive(Clone)]
enum Data {
    Owned(Arc<Buffer>),
    /// A range of bytes that is aligned for `dtype`; [`AnchorData::mapped`] sees to that.
    Mapped {
        map: Arc<Mmap>,
        range: Range<usize>,
        dtype: DType,
    },
}

impl AnchorData {
    /// Keeps `data`.
    pub fn new(data: Buffer) -> Self {
        Self { data: Data::Owned(Arc::new(data)) }
    }

    /// Little-endian elements inside a mapped file. They stay where they are if their address suits their type, and are
    /// copied otherwise. `range` lies inside the map and holds whole elements.
    pub(super) fn mapped(map: &Arc<Mmap>, range: Range<usize>, dtype: DType) -> Self {
        let bytes = &map[range.clone()];
        let aligned = bytes.as_ptr().addr().is_multiple_of(dtype.size());
        if cfg!(target_endian = "little") && aligned {
            Self { data: Data::Mapped { map: map.clone(), range, dtype } }
        } else {
            Self::new(decode(bytes, dtype))
        }
    }

    /// A copy of little-endian elements. `bytes` are whole elements.
    pub(super) fn copied(bytes: &[u8], dtype: DType) -> Self {
        Self::new(decode(bytes, dtype))
    }

    /// The elements, row-major.
    pub fn slice(&self) -> Slice<'_> {
        match &self.data {
            Data::Owned(buffer) => buffer.as_slice(),
            Data::Mapped { map, range, dtype } => {
                let bytes = &map[range.clone()];
                match dtype {
                    DType::F64 => Slice::F64(cast_slice(bytes)),
                    DType::F32 => Slice::F32(cast_slice(bytes)),
                    DType::F16 => Slice::F16(cast_slice(bytes)),
                    DType::BF16 => Slice::BF16(cast_slice(bytes)),
                }
            }
        }
    }

    /// Some of the elements: where they are, if they are in a mapped file, else a copy, so that the others can go.
    ///
    /// # Panics
    ///
    /// If `elements` lie outside.
    #[must_use]
    pub fn part(&self, elements: Range<usize>) -> Self {
        match &self.data {
            Data::Owned(buffer) => {
                Self::new(Buffer::concat(&[buffer.as_slice().sub(elements)]).expect("there is a part"))
            }
            Data::Mapped { map, range, dtype } => {
                let at = |element: usize| range.start + element * dtype.size();
                let part = at(elements.start)..at(elements.end);
                assert!(part.start <= part.end && part.end <= range.end, "elements of the tensor");
                Self { data: Data::Mapped { map: map.clone(), range: part, dtype: *dtype } }
            }
        }
    }

    /// True if the elements are read from a memory-mapped file: they take no memory of their own.
    pub fn is_mapped(&self) -> bool {
        matches!(self.data, Data::Mapped { .. })
    }
}

/// Values would drown whatever prints a parameter.
impl fmt::Debug for AnchorData {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let slice = self.slice();
        f.debug_struct("AnchorData")
            .field("dtype", &slice.dtype())
            .field("len", &slice.len())
            .field("mapped", &self.is_mapped())
            .finish()
    }
}

fn decode(bytes: &[u8], dtype: DType) -> Buffer {
    fn each<const N: usize, T>(bytes: &[u8], from: fn([u8; N]) -> T) -> Vec<T> {
        bytes.as_chunks::<N>().0.iter().map(|&chunk| from(chunk)).collect()
    }
    match dtype {
        DType::F64 => Buffer::F64(each(bytes, f64::from_le_bytes)),
        DType::F32 => Buffer::F32(each(bytes, f32::from_le_bytes)),
        DType::F16 => Buffer::F16(each(bytes, f16::from_le_bytes)),
        DType::BF16 => Buffer::BF16(each(bytes, bf16::from_le_bytes)),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn map(bytes: &[u8]) -> Arc<Mmap> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        // SAFETY: the file is unlinked and only this test writes to it, before it is mapped.
        Arc::new(unsafe { Mmap::map(&file) }.unwrap())
    }

    #[test]
    fn aligned_data_is_not_copied_and_misaligned_data_is() {
        let values = [1.5f32, -2.0, f32::MIN_POSITIVE, 1e30];
        let mut bytes = vec![0; 4];
        values.iter().for_each(|x| bytes.extend(x.to_le_bytes()));
        bytes.push(0);
        values.iter().for_each(|x| bytes.extend(x.to_le_bytes()));
        let map = map(&bytes);

        let aligned = AnchorData::mapped(&map, 4..20, DType::F32);
        assert!(aligned.is_mapped());
        let Slice::F32(slice) = aligned.slice() else { panic!("{aligned:?}") };
        assert_eq!(slice.as_ptr().addr(), map.as_ptr().addr() + 4);
        assert_eq!(slice, values);

        let misaligned = AnchorData::mapped(&map, 21..37, DType::F32);
        assert!(!misaligned.is_mapped());
        assert_eq!(misaligned.slice(), Slice::F32(&values));
    }

    #[test]
    fn a_part_of_mapped_data_stays_where_it_is_and_one_of_owned_data_is_a_copy() {
        let values = [1.5f32, -2.0, 3.0, 4.0];
        let map = map(&values.map(f32::to_le_bytes).concat());
        let whole = AnchorData::mapped(&map, 0..16, DType::F32);
        let part = whole.part(1..3);
        assert!(part.is_mapped());
        let Slice::F32(slice) = part.slice() else { panic!("{part:?}") };
        assert_eq!((slice.as_ptr().addr(), slice), (map.as_ptr().addr() + 4, &values[1..3]));
        assert_eq!(part.part(1..2).slice(), Slice::F32(&values[2..3]));
        let owned = AnchorData::new(Buffer::F32(values.to_vec())).part(1..3);
        assert!(!owned.is_mapped());
        assert_eq!(owned.slice(), Slice::F32(&values[1..3]));
    }

    #[test]
    fn every_type_is_read_alike_from_the_map_and_by_copy() {
        let exact = [0.5f64, -1.25, 3.0];
        for dtype in DType::ALL {
            let mut bytes = vec![];
            for x in exact {
                match dtype {
                    DType::F64 => bytes.extend(x.to_le_bytes()),
                    DType::F32 => bytes.extend((x as f32).to_le_bytes()),
                    DType::F16 => bytes.extend(f16::from_f64(x).to_le_bytes()),
                    DType::BF16 => bytes.extend(bf16::from_f64(x).to_le_bytes()),
                }
            }
            let range = 0..bytes.len();
            let shifted: Vec<u8> = [0].into_iter().chain(bytes.iter().copied()).collect();
            let mapped = AnchorData::mapped(&map(&bytes), range.clone(), dtype);
            let copied = AnchorData::mapped(&map(&shifted), 1..range.end + 1, dtype);
            assert!(mapped.is_mapped() && !copied.is_mapped());
            assert_eq!(mapped.slice().to_f64(), exact);
            assert_eq!(copied.slice().to_f64(), exact);
        }
    }
}
