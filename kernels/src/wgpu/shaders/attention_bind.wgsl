// What attention binds: after step.wgsl and one of kv_*.wgsl, before heads.wgsl.
struct Attention {
    n_kv_heads: u32,
    // Heads that share one of keys and values.
    per_kv_head: u32,
    key_dim: u32,
    value_dim: u32,
    q_stride: u32,
    out_stride: u32,
    page_tokens: u32,
    pool: u32,
    // 0 for none.
    window: u32,
    // Threads that share the vectors of four of a value, as a power of two of at most 64.
    lanes: u32,
    scale: f32,
    cap: f32,
    // Floats before the first head of a row.
    q_at: u32,
    norm_at: u32,
    eps: f32,
    n_pairs: u32,
    angles_at: u32,
}

@group(0) @binding(1) var<storage, read> q: array<f32>;
@group(0) @binding(2) var<storage, read> keys: array<Word>;
@group(0) @binding(3) var<storage, read> values: array<Word>;
@group(0) @binding(4) var<storage, read> angles: array<f32>;
@group(0) @binding(5) var<storage, read> vectors: array<f32>;
@group(0) @binding(6) var<storage, read_write> out: array<f32>;
@group(0) @binding(7) var<uniform> p: Attention;
