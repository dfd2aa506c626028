//! `cargo xtask <command>`: every chore of the workspace under one name.
fn main() {}
