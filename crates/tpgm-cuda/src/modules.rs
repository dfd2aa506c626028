//! The compiled kernels: made by `cargo xtask ptx`, checked against their sources by `cargo xtask ptx --check`.
//!
//! A module is one kernel for one storage of the operands, as a fat binary: machine code for the usual GPUs and PTX for all
//! others. The driver takes what fits the device.

use tpgm_core::DType;

use crate::operands::{Storage, Types};

/// A kernel for one storage of the operands.
pub(crate) struct Module {
    /// Of the function in it, and legible in the image.
    pub(crate) name: &'static str,
    pub(crate) image: &'static [u8],
}

/// A kernel for every storage of the operands.
pub(crate) struct Kernel {
    f32: Module,
    bf16: Module,
    f16: Module,
    /// bf16 with f32 anchors.
    bf16_f32: Module,
    /// f16 with f32 anchors.
    f16_f32: Module,
    any: Module,
}

macro_rules! module {
    ($kernel:literal, $storage:literal) => {
        Module {
            name: concat!($kernel, "_", $storage),
            image: include_bytes!(concat!(
                env!("CARGO_MANIFEST_DIR"),
                "/modules/",
                $kernel,
                "_",
                $storage,
                ".fatbin"
            )),
        }
    };
}
pub(crate) use module;

macro_rules! kernels {
    ($($constant:ident: $kernel:literal),*) => {
        $(
            pub(crate) static $constant: Kernel = Kernel {
                f32: module!($kernel, "f32"),
                bf16: module!($kernel, "bf16"),
                f16: module!($kernel, "f16"),
                bf16_f32: module!($kernel, "bf16_f32"),
                f16_f32: module!($kernel, "f16_f32"),
                any: module!($kernel, "any"),
            };
        )*
        static ALL: &[&Kernel] = &[$(&$constant),*];
    };
}

kernels!(
    MEASURE: "measure",
    ADAMW: "adamw",
    SGD: "sgd",
    PROJECT: "project",
    REMEMBER: "remember",
    WRITE: "write",
    RADII: "radii",
    BLEND: "blend",
    WEIGH: "weigh"
);

impl Kernel {
    /// The name of the kernel for a storage: the one that has its types compiled in, or the one for any types.
    pub(crate) fn name(&self, storage: Storage) -> &'static str {
        use DType::{BF16, F16, F32};
        use Types::{All, Open};
        let module = match (storage.main, storage.anchors) {
            (Open | All(F32), Open | All(F32)) => &self.f32,
            (All(BF16), Open | All(BF16)) => &self.bf16,
            (All(F16), Open | All(F16)) => &self.f16,
            (All(BF16), All(F32)) => &self.bf16_f32,
            (All(F16), All(F32)) => &self.f16_f32,
            _ => &self.any,
        };
        module.name
    }

    fn modules(&self) -> [&Module; 6] {
        [&self.f32, &self.bf16, &self.f16, &self.bf16_f32, &self.f16_f32, &self.any]
    }
}

/// The lowest compute capability that the kernels run on, times ten.
pub(crate) const LOWEST_CAPABILITY: u32 = 75;

/// The module with this kernel.
pub(crate) fn image(kernel: &str) -> Option<&'static [u8]> {
    let of_optimizer = ALL.iter().flat_map(|kernel| kernel.modules());
    of_optimizer
        .chain(crate::layers::modules())
        .find(|module| module.name == kernel)
        .map(|module| module.image)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_that_are_compiled_in_are_used() {
        let of = |main, anchors| MEASURE.name(Storage { main, anchors });
        let (f32, bf16, f16) = (Types::All(DType::F32), Types::All(DType::BF16), Types::All(DType::F16));
        let f64 = Types::All(DType::F64);
        assert_eq!(of(Types::Open, Types::Open), "measure_f32");
        assert_eq!((of(f32, Types::Open), of(f32, f32)), ("measure_f32", "measure_f32"));
        assert_eq!((of(bf16, Types::Open), of(bf16, bf16)), ("measure_bf16", "measure_bf16"));
        assert_eq!((of(f16, Types::Open), of(f16, f16)), ("measure_f16", "measure_f16"));
        assert_eq!((of(bf16, f32), of(f16, f32)), ("measure_bf16_f32", "measure_f16_f32"));
        for (main, anchors) in [
            (f32, bf16),
            (bf16, f16),
            (f64, Types::Open),
            (f64, f64),
            (bf16, f64),
            (Types::Mixed, Types::Open),
            (bf16, Types::Mixed),
        ] {
            assert_eq!(of(main, anchors), "measure_any", "{main:?} {anchors:?}");
        }
    }

    /// A fat binary starts with this number, and its modules' names are legible in ours.
    #[test]
    fn every_module_is_a_fat_binary_with_its_name() {
        assert_eq!(ALL.len(), 9);
        for module in ALL.iter().flat_map(|kernel| kernel.modules()) {
            assert_eq!(image(module.name), Some(module.image));
            assert_eq!(module.image[..4], 0xBA55_ED50_u32.to_le_bytes(), "{}", module.name);
            let name = [module.name.as_bytes(), &[0]].concat();
            assert!(module.image.windows(name.len()).any(|window| window == name), "{}", module.name);
        }
        assert_eq!(image("measure"), None);
    }
}
