// Rotates pairs of each head by the row's position; cos and sin come from the host, which has them in f64. After
// step.wgsl.
override IS_SPLIT: bool = false;

struct Rotation { head_dim: u32, width: u32, stride: u32, n_pairs: u32, angles_at: u32, }

@group(0) @binding(1) var<storage, read> x: array<f32>;
// Of each row the cosines of all pairs, then their sines.
@group(0) @binding(2) var<storage, read> angles: array<f32>;
@group(0) @binding(3) var<storage, read_write> out: array<f32>;
@group(0) @binding(4) var<uniform> p: Rotation;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let col = group.x * 64u + thread;
    if (col >= p.width) { return; }
    let at = group.y * p.stride + col;
    let place = col % p.head_dim;
    if (place >= 2u * p.n_pairs) {
        out[at] = x[at];
        return;
    }
    var pair = place / 2u;
    var is_second = place % 2u == 1u;
    var apart = 1u;
    if (IS_SPLIT) {
        pair = place % p.n_pairs;
        is_second = place >= p.n_pairs;
        apart = p.n_pairs;
    }
    let start = p.angles_at + group.y * 2u * p.n_pairs;
    let cosine = angles[start + pair];
    let sine = angles[start + p.n_pairs + pair];
    if (is_second) {
        out[at] = x[at - apart] * sine + x[at] * cosine;
    } else {
        out[at] = x[at] * cosine - x[at + apart] * sine;
    }
}
