//! The CUDA backend of `tpgm-core`. Nothing is here yet: the crate reserves its place in the workspace.
