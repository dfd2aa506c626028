//! The compiled kernels: made by `cargo xtask ptx`, checked against their sources by `cargo xtask ptx --check`.

/// One module per target and storage of the operands.
macro_rules! modules {
    ($($target:literal: $directory:literal),*) => {
        /// Compute capabilities that the kernels were compiled for, ascending.
        const TARGETS: &[u32] = &[$($target),*];

        /// The module for operands stored as `storage` says, for a target of [`TARGETS`].
        pub(crate) fn source(target: u32, storage: &str) -> Option<&'static str> {
            match (target, storage) {
                $(
                    ($target, "f32") => Some(include_str!(concat!("../ptx/f32.", $directory, ".ptx"))),
                    ($target, "bf16") => Some(include_str!(concat!("../ptx/bf16.", $directory, ".ptx"))),
                    ($target, "f16") => Some(include_str!(concat!("../ptx/f16.", $directory, ".ptx"))),
                    ($target, "any") => Some(include_str!(concat!("../ptx/any.", $directory, ".ptx"))),
                )*
                _ => None,
            }
        }
    };
}

modules!(75: "compute_75", 90: "compute_90");

/// The newest target that a device of this compute capability can run.
pub(crate) fn newest(capability: u32) -> Option<u32> {
    TARGETS.iter().copied().rfind(|&target| target <= capability)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_gets_the_newest_target_it_can_run() {
        assert_eq!(newest(70), None);
        assert_eq!(newest(75), Some(75));
        assert_eq!(newest(89), Some(75));
        assert_eq!(newest(90), Some(90));
        assert_eq!(newest(120), Some(90));
    }

    #[test]
    fn every_module_has_its_kernels() {
        for &target in TARGETS {
            for storage in ["f32", "bf16", "f16", "any"] {
                let source = source(target, storage).expect("a module");
                for kernel in ["measure", "adamw", "sgd", "project", "remember", "write", "radii", "blend"] {
                    assert!(source.contains(&format!(".entry {kernel}_{storage}(")), "{kernel}_{storage}");
                }
            }
        }
    }
}
