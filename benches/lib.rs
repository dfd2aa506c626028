//! Benchmarks over the tensor lists of real models.
