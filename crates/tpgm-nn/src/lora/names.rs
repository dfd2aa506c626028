//! Names of factors.

/// The ends of the names of the factors A and B of linear and convolution layers.
pub(super) const LAYER: [&str; 2] = ["lora_A.weight", "lora_B.weight"];

/// The same for embeddings.
pub(super) const EMBEDDING: [&str; 2] = ["lora_embedding_A", "lora_embedding_B"];

/// The module that a parameter is a factor of, if it is one.
pub fn module_of(param: &str) -> Option<&str> {
    LAYER.iter().chain(&EMBEDDING).find_map(|end| param.strip_suffix(end)?.strip_suffix('.'))
}
