//! Where test data lives, for the tests of every crate.
//!
//! Golden data stands beside the checkout (`../shared/fixtures`, or `FARPOST_FIXTURES`); model files are made or
//! fetched by `./test` (`target/fixtures`, or `FARPOST_TEST_MODELS`). A test that needs either fails without it.

use std::path::{Path, PathBuf};

fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate lies in the workspace")
}

fn existing(variable: &str, default: PathBuf, name: &str, mend: &str) -> PathBuf {
    let folder = std::env::var_os(variable).map_or(default, PathBuf::from);
    let path = folder.join(name);
    assert!(path.exists(), "test data {} is missing: {mend}, or set {variable}", path.display());
    path
}

/// A golden file or folder, such as `blocks/q4_0.bin`.
pub fn golden(name: &str) -> PathBuf {
    let default = workspace().join("../shared/fixtures");
    existing("FARPOST_FIXTURES", default, name, "put the golden data beside the checkout")
}

/// A model file, such as `tiny-llama.gguf` or `gemma-3-270m-q4_k_m.gguf`.
pub fn model(name: &str) -> PathBuf {
    existing("FARPOST_TEST_MODELS", workspace().join("target/fixtures"), name, "run ./test --fixtures")
}

/// A golden file of little-endian f32 values.
pub fn golden_f32(name: &str) -> Vec<f32> {
    let bytes = std::fs::read(golden(name)).expect("golden data can be read");
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().expect("four bytes"))).collect()
}
