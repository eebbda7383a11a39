// After store_bind.wgsl and heads.wgsl.

fn rotation() -> Heads { return Heads(p.norm_at, p.eps, p.n_pairs, p.angles_at); }

// Brings the head of a group in, its norm if it is one of keys.
fn read_head(row: u32, head: u32, is_key: bool, thread: u32) {
    let dim = select(p.value_dim, p.key_dim, is_key);
    for (var at = thread; at < dim; at += 64u) {
        if (is_key) {
            head_raw[at] = k[row * p.key_stride + p.key_at + head * dim + at];
        } else {
            head_raw[at] = v[row * p.value_stride + p.value_at + head * dim + at];
        }
    }
    norm_head(thread, dim, is_key, rotation());
}

fn element(row: u32, place: u32, is_key: bool) -> f32 {
    if (is_key) { return rotated(row, place, rotation()); }
    return head_raw[place];
}
