//! The compiled kernels of layers: one module for each kernel and element type, as [`crate::modules`] has them.

use tpgm_core::DType;

use crate::modules::{Module, module};

/// A kernel for every element type.
pub(super) struct Kernel {
    f32: Module,
    /// Absent, as the next one, where the kernel touches no elements.
    bf16: Option<Module>,
    f16: Option<Module>,
}

macro_rules! kernels {
    ($($constant:ident: $kernel:literal),* $(,)?) => {
        $(
            pub(super) static $constant: Kernel = Kernel {
                f32: module!($kernel, "f32"),
                bf16: Some(module!($kernel, "bf16")),
                f16: Some(module!($kernel, "f16")),
            };
        )*
        static ALL: &[&Kernel] = &[$(&$constant,)* &CROSS_ENTROPY_MEAN, &EMBEDDING_SORT];
    };
}

/// Of losses, which are f32 whatever the logits are.
pub(super) static CROSS_ENTROPY_MEAN: Kernel =
    Kernel { f32: module!("cross_entropy_mean", "f32"), bf16: None, f16: None };

/// Of whole numbers.
pub(super) static EMBEDDING_SORT: Kernel =
    Kernel { f32: module!("embedding_sort", "f32"), bf16: None, f16: None };

kernels!(
    ACTIVATION_BACKWARD: "activation_backward",
    ACTIVATION_FORWARD: "activation_forward",
    BATCH_NORM_APPLY: "batch_norm_apply",
    BATCH_NORM_COMBINE: "batch_norm_combine",
    BATCH_NORM_SUMS: "batch_norm_sums",
    COLUMN_SUMS: "column_sums",
    CROSS_ENTROPY_BACKWARD: "cross_entropy_backward",
    CROSS_ENTROPY_FORWARD: "cross_entropy_forward",
    DROPOUT: "dropout",
    EMBEDDING_BACKWARD: "embedding_backward",
    GATED_BACKWARD: "gated_backward",
    GATED_FORWARD: "gated_forward",
    NORM_BACKWARD: "norm_backward",
    NORM_FORWARD: "norm_forward",
    POOL_BACKWARD: "pool_backward",
    POOL_FORWARD: "pool_forward",
    ROTARY: "rotary",
    SOFTMAX_BACKWARD: "softmax_backward",
    SOFTMAX_FORWARD: "softmax_forward",
);

impl Kernel {
    /// The name of the kernel for an element type; layers refuse f64 before.
    pub(super) fn name(&self, dtype: DType) -> &'static str {
        let module = match dtype {
            DType::BF16 => self.bf16.as_ref(),
            DType::F16 => self.f16.as_ref(),
            DType::F32 | DType::F64 => None,
        };
        module.unwrap_or(&self.f32).name
    }
}

/// All of them.
pub(crate) fn modules() -> impl Iterator<Item = &'static Module> {
    ALL.iter().flat_map(|kernel| [Some(&kernel.f32), kernel.bf16.as_ref(), kernel.f16.as_ref()]).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_module_is_a_fat_binary_with_its_name() {
        for module in modules() {
            assert_eq!(crate::modules::image(module.name), Some(module.image));
            assert_eq!(module.image[..4], 0xBA55_ED50_u32.to_le_bytes(), "{}", module.name);
            let name = [module.name.as_bytes(), &[0]].concat();
            assert!(module.image.windows(name.len()).any(|window| window == name), "{}", module.name);
        }
    }

    /// A kernel that is in the sources but not in the list could not be loaded.
    #[test]
    fn the_list_of_kernels_is_that_of_the_sources() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../kernels/layers");
        let Ok(entries) = std::fs::read_dir(folder) else { return }; // a package alone
        let mut sources: Vec<String> = entries
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.extension().is_some_and(|extension| extension == "cu"))
            .map(|path| format!("{}_f32", path.file_stem().unwrap().to_string_lossy()))
            .collect();
        sources.sort();
        let mut listed: Vec<_> = ALL.iter().map(|kernel| kernel.f32.name).collect();
        listed.sort_unstable();
        assert_eq!(sources, listed);
    }
}
