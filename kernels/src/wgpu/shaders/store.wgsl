// Writes keys or values of all rows into their pages, four elements a thread: after step.wgsl and one of kv_*.wgsl.
struct Store { n_heads: u32, dim: u32, fours: u32, stride: u32, page_tokens: u32, pool: u32, }

@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> plane: array<Word>;
@group(0) @binding(3) var<uniform> p: Store;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let number = group.x * 64u + thread;
    if (number >= p.n_heads * p.fours) { return; }
    let head = number / p.fours;
    let four = number % p.fours;
    let start = group.y * p.stride + head * p.dim;
    var v = vec4<f32>(0.0);
    for (var part = 0u; part < 4u; part++) {
        let at = four * 4u + part;
        if (at < p.dim) { v[part] = x[start + at]; }
    }
    let position = position_of(group.y);
    let page = step[table_of(group.y, p.pool) + position / p.page_tokens];
    let block = (page * p.n_heads + head) * p.page_tokens * p.fours;
    plane[block + (position % p.page_tokens) * p.fours + four] = narrowed(v);
}
