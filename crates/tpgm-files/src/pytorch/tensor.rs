//! How a pickle describes a tensor.

use std::ops::Range;

use safetensors::Dtype;
use tpgm_core::DType;

use super::super::writer::file_dtype;
use super::container::Container;
use super::pickle::{Id, Object, Pickle};

/// More dimensions than any tensor has.
const MAX_RANK: usize = 32;

/// A type of elements.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Element {
    Float(DType),
    Other(Dtype),
    /// Its name, for messages.
    Unreadable(String),
}

impl Element {
    /// By the class of a storage.
    fn of(class: &str) -> Self {
        match class.strip_prefix("torch.").unwrap_or(class) {
            "DoubleStorage" => Self::Float(DType::F64),
            "FloatStorage" => Self::Float(DType::F32),
            "HalfStorage" => Self::Float(DType::F16),
            "BFloat16Storage" => Self::Float(DType::BF16),
            "ByteStorage" => Self::Other(Dtype::U8),
            "ShortStorage" => Self::Other(Dtype::I16),
            "IntStorage" => Self::Other(Dtype::I32),
            "LongStorage" => Self::Other(Dtype::I64),
            other => Self::Unreadable(format!("a tensor of type `{other}`")),
        }
    }

    /// The type that a safetensors file has for it. What such a file lacks is complex: neither a weight nor an integer.
    pub(super) fn file_dtype(&self) -> Dtype {
        match self {
            Self::Float(dtype) => file_dtype(*dtype),
            Self::Other(dtype) => *dtype,
            Self::Unreadable(name) if name.contains("BoolStorage") => Dtype::BOOL,
            Self::Unreadable(name) if name.contains("CharStorage") => Dtype::I8,
            Self::Unreadable(_) => Dtype::C64,
        }
    }

    /// True if a safetensors file has the same bits for it.
    pub(super) fn is_plain(&self) -> bool {
        !matches!(self, Self::Unreadable(_)) || self.file_dtype() != Dtype::C64
    }

    /// Bytes of an element.
    pub(super) fn size(&self) -> usize {
        match self {
            Self::Float(dtype) => dtype.size(),
            Self::Other(dtype) => dtype.bitsize() / 8,
            Self::Unreadable(name) if name.contains("ComplexDouble") => 16,
            Self::Unreadable(name) if name.contains("ComplexFloat") => 8,
            Self::Unreadable(name) if name.contains("QInt32") => 4,
            Self::Unreadable(_) => 1,
        }
    }
}

/// Where a tensor's elements are.
#[derive(Debug, Clone)]
pub(super) struct Stored {
    pub(super) element: Element,
    pub(super) shape: Vec<usize>,
    pub(super) strides: Vec<usize>,
    /// The first byte in the file.
    pub(super) start: usize,
    /// Bytes from there to the end of its storage.
    available: usize,
}

/// A storage that a pickle mentions.
pub(super) struct Storage<'a> {
    pub(super) key: &'a str,
    pub(super) element: Element,
}

/// What a persistent identity says: `("storage", class, key, device, elements)`, in old files with a view.
pub(super) fn storage_of(pickle: &Pickle, id: Id) -> Option<Storage<'_>> {
    let [_, class, key, ..] = pickle.tuple(id)? else { return None };
    Some(Storage { key: pickle.text(*key)?, element: Element::of(pickle.global(*class)?) })
}

/// True for what a tensor, or a parameter, is made by.
pub(super) fn is_tensor(pickle: &Pickle, id: Id) -> bool {
    let Object::Call { function, .. } = pickle.get(id) else { return false };
    pickle.global(*function).is_some_and(|name| {
        name.starts_with("torch._utils._rebuild_") || name == "torch._tensor._rebuild_from_type_v2"
    })
}

/// Reads the description of a tensor for which [`is_tensor`] holds.
pub(super) fn interpret(container: &Container, id: Id) -> Result<Stored, String> {
    let pickle = &container.pickle;
    let mut id = id;
    // A parameter of a subclass of tensors is three calls deep.
    for _ in 0..4 {
        let Object::Call { function, args, .. } = pickle.get(id) else { break };
        let (name, args) =
            (pickle.global(*function).unwrap_or_default(), pickle.tuple(*args).unwrap_or_default());
        match (name, args) {
            (
                "torch._utils._rebuild_parameter" | "torch._utils._rebuild_parameter_with_state",
                [inner, ..],
            ) => id = *inner,
            ("torch._tensor._rebuild_from_type_v2", [function, _, args, ..]) => {
                return match (pickle.global(*function), pickle.tuple(*args)) {
                    (Some(name), Some(args)) => rebuilt(container, name, args),
                    _ => Err("its pickle does not say how it is made".to_owned()),
                };
            }
            (name, args) => return rebuilt(container, name, args),
        }
    }
    Err("its pickle does not say how it is made".to_owned())
}

fn rebuilt(container: &Container, name: &str, args: &[Id]) -> Result<Stored, String> {
    let pickle = &container.pickle;
    if !matches!(name, "torch._utils._rebuild_tensor_v2" | "torch._utils._rebuild_tensor") {
        // Sparse, quantized, of a type that has no storage of its own: who asks for it is told.
        let element = Element::Unreadable(format!("a tensor saved by `{name}`"));
        return Ok(Stored { element, shape: vec![], strides: vec![], start: 0, available: usize::MAX });
    }
    let senseless = || "its pickle makes no sense".to_owned();
    let [storage, offset, shape, strides, ..] = args else { return Err(senseless()) };
    let Object::Persistent(identity) = pickle.get(*storage) else { return Err(senseless()) };
    let Storage { key, element } = storage_of(pickle, *identity).ok_or_else(senseless)?;
    let range = container.storages.get(key).ok_or_else(|| {
        format!("its elements, storage `{key}`, are not in the file, or compressed or cut off")
    })?;
    if pickle
        .tuple(*identity)
        .and_then(|parts| parts.get(5))
        .is_some_and(|view| pickle.tuple(*view).is_some())
    {
        return Err(
            "it is a view of a storage, as very old versions of PyTorch saved it; save it again".to_owned()
        );
    }
    let numbers = |id: Id| -> Option<Vec<usize>> {
        let items = pickle.tuple(id).filter(|items| items.len() <= MAX_RANK)?;
        items.iter().map(|&item| usize::try_from(pickle.int(item)?).ok()).collect()
    };
    let (shape, strides) = numbers(*shape).zip(numbers(*strides)).ok_or_else(senseless)?;
    let skipped = pickle
        .int(*offset)
        .and_then(|offset| usize::try_from(offset).ok()?.checked_mul(element.size()))
        .filter(|&skipped| skipped <= range.len())
        .ok_or_else(|| format!("it begins behind the end of its storage of {} bytes", range.len()))?;
    if shape.len() != strides.len() {
        return Err(senseless());
    }
    Ok(Stored { element, shape, strides, start: range.start + skipped, available: range.len() - skipped })
}

impl Stored {
    /// How many; [`check`](Self::check) made sure that the product can be computed.
    pub(super) fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// The pickle states sizes that memory is reserved for. They must lie inside the storage, and a tensor that mentions
    /// one element again and again must not become larger than the file.
    pub(super) fn check(&self, file: usize) -> Result<(), String> {
        let Self { shape, strides, .. } = self;
        let size = self.element.size();
        let bytes = shape.iter().copied().chain([size]).try_fold(1, usize::checked_mul);
        let Some(bytes) = bytes.filter(|&bytes| bytes <= file) else {
            return Err(format!("its shape {shape:?} does not fit a file of {file} bytes"));
        };
        if bytes == 0 {
            return Ok(());
        }
        let last = shape
            .iter()
            .zip(strides)
            .try_fold(0usize, |last, (dim, stride)| last.checked_add((dim - 1).checked_mul(*stride)?));
        let end = last.and_then(|last| last.checked_add(1)?.checked_mul(size));
        match end.is_some_and(|end| end <= self.available) {
            true => Ok(()),
            false => Err(format!(
                "its shape {shape:?} with strides {strides:?} does not fit {} bytes of data; is the file cut off?",
                self.available
            )),
        }
    }

    /// Do the elements lie as a tensor in memory does?
    pub(super) fn is_row_major(&self) -> bool {
        let mut expected = 1;
        self.shape.iter().zip(&self.strides).rev().all(|(&dim, &stride)| {
            let fits = dim == 1 || stride == expected;
            expected *= dim;
            fits
        }) || self.elements() == 0
    }

    /// The bytes of a tensor for which [`is_row_major`](Self::is_row_major) holds.
    pub(super) fn range(&self) -> Range<usize> {
        self.start..self.start + self.elements() * self.element.size()
    }

    /// Its elements, row-major.
    pub(super) fn gather(&self, file: &[u8]) -> Vec<u8> {
        let size = self.element.size();
        if self.is_row_major() {
            return file[self.range()].to_vec();
        }
        let mut bytes = Vec::with_capacity(self.elements() * size);
        let mut index = vec![0; self.shape.len()];
        for _ in 0..self.elements() {
            let at: usize = index.iter().zip(&self.strides).map(|(i, stride)| i * stride).sum();
            let start = self.start + at * size;
            bytes.extend(&file[start..start + size]);
            for (i, dim) in index.iter_mut().zip(&self.shape).rev() {
                *i += 1;
                if *i < *dim {
                    break;
                }
                *i = 0;
            }
        }
        bytes
    }
}
