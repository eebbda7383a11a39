// A head of queries or keys as it is attended with: its norm, then its rotation by the row's position. After thread_*.wgsl.
//
// Whoever takes this in puts the head's elements into head_raw first.
override HAS_NORM: bool = false;
override HAS_ROPE: bool = false;
// Pairs are halves of the head, not neighbours.
override IS_SPLIT: bool = false;

struct Heads { norm_at: u32, eps: f32, n_pairs: u32, angles_at: u32, }

var<workgroup> head_raw: array<f32, 1024>;

// Makes head_raw the norm of itself where it is one to be normed; all 64 threads call it.
fn norm_head(thread: u32, dim: u32, is_normed: bool, heads: Heads) {
    workgroupBarrier();
    if (!HAS_NORM) { return; }
    var square = 0.0;
    for (var at = thread; at < dim; at += 64u) { square += head_raw[at] * head_raw[at]; }
    square = group_sum(thread, square);
    let scale = 1.0 / sqrt(square / f32(dim) + heads.eps);
    if (is_normed) {
        for (var at = thread; at < dim; at += 64u) { head_raw[at] *= scale * vectors[heads.norm_at + at]; }
    }
    workgroupBarrier();
}

// An element after rotation. Of each row there are the cosines of all pairs, then their sines: the host has them in f64.
fn rotated(row: u32, place: u32, heads: Heads) -> f32 {
    if (!HAS_ROPE || place >= 2u * heads.n_pairs) { return head_raw[place]; }
    var pair = place / 2u;
    var is_second = place % 2u == 1u;
    var apart = 1u;
    if (IS_SPLIT) {
        pair = place % heads.n_pairs;
        is_second = place >= heads.n_pairs;
        apart = heads.n_pairs;
    }
    let start = heads.angles_at + row * 2u * heads.n_pairs;
    let cosine = angles[start + pair];
    let sine = angles[start + heads.n_pairs + pair];
    if (is_second) { return head_raw[place - apart] * sine + head_raw[place] * cosine; }
    return head_raw[place] * cosine - head_raw[place + apart] * sine;
}
