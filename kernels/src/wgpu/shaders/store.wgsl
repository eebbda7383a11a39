// Writes keys and values of all rows into their pages, four elements a thread, those of keys first: after step.wgsl and one
// of kv_*.wgsl.
struct Store {
    n_heads: u32,
    page_tokens: u32,
    pool: u32,
    // Groups that write keys.
    key_groups: u32,
    key_dim: u32,
    key_stride: u32,
    value_dim: u32,
    value_stride: u32,
}

@group(0) @binding(1) var<storage, read> k: array<f32>;
@group(0) @binding(2) var<storage, read> v: array<f32>;
@group(0) @binding(3) var<storage, read_write> keys: array<Word>;
@group(0) @binding(4) var<storage, read_write> values: array<Word>;
@group(0) @binding(5) var<uniform> p: Store;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let is_key = group.x < p.key_groups;
    let number = select(group.x - p.key_groups, group.x, is_key) * 64u + thread;
    let dim = select(p.value_dim, p.key_dim, is_key);
    let fours = (dim + 3u) / 4u;
    if (number >= p.n_heads * fours) { return; }
    let head = number / fours;
    let four = number % fours;
    let start = group.y * select(p.value_stride, p.key_stride, is_key) + head * dim;
    var elements = vec4<f32>(0.0);
    for (var part = 0u; part < 4u; part++) {
        let at = four * 4u + part;
        if (at < dim) {
            if (is_key) { elements[part] = k[start + at]; } else { elements[part] = v[start + at]; }
        }
    }
    let position = position_of(group.y);
    let page = step[table_of(group.y, p.pool) + position / p.page_tokens];
    let block = (page * p.n_heads + head) * p.page_tokens * fours;
    let at = block + (position % p.page_tokens) * fours + four;
    if (is_key) { keys[at] = narrowed(elements); } else { values[at] = narrowed(elements); }
}
