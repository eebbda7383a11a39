// Writes keys and values of all rows into their pages, four elements a thread: after store_read.wgsl.

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) index: u32, MEMBER) {
    let thread = THREAD;
    let is_key = group.x < p.n_heads;
    let head = group.x % p.n_heads;
    read_head(group.y, head, is_key, thread);
    let dim = select(p.value_dim, p.key_dim, is_key);
    let fours = (dim + 3u) / 4u;
    let position = position_of(group.y);
    let page = step[table_of(group.y, p.pool) + position / p.page_tokens];
    let start = ((page * p.n_heads + head) * p.page_tokens + position % p.page_tokens) * fours;
    for (var four = thread; four < fours; four += 64u) {
        var elements = vec4<f32>(0.0);
        for (var part = 0u; part < 4u; part++) {
            let at = four * 4u + part;
            if (at < dim) { elements[part] = element(group.y, at, is_key); }
        }
        if (is_key) { keys[start + four] = narrowed(elements); } else { values[start + four] = narrowed(elements); }
    }
}
