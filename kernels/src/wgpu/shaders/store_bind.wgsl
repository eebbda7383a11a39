// What writers of keys and values have in common: after step.wgsl and one of kv_*.wgsl, before heads.wgsl. A group takes a
// head of a row: those of keys first, then those of values.
struct Store {
    n_heads: u32,
    page_tokens: u32,
    pool: u32,
    key_dim: u32,
    // Floats from one row to the next, and before the first head.
    key_stride: u32,
    key_at: u32,
    value_dim: u32,
    value_stride: u32,
    value_at: u32,
    norm_at: u32,
    eps: f32,
    n_pairs: u32,
    angles_at: u32,
}

@group(0) @binding(1) var<storage, read> k: array<f32>;
@group(0) @binding(2) var<storage, read> v: array<f32>;
@group(0) @binding(3) var<storage, read> angles: array<f32>;
@group(0) @binding(4) var<storage, read> vectors: array<f32>;
@group(0) @binding(5) var<storage, read_write> keys: array<Word>;
@group(0) @binding(6) var<storage, read_write> values: array<Word>;
@group(0) @binding(7) var<uniform> p: Store;
