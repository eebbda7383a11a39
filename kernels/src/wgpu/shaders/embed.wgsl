// Rows of a table by token, 32 weights a thread: after step.wgsl and weights.wgsl.
struct Embed {
    // Rows of this part of the table, and the first of them in the whole.
    n_out: u32,
    first: u32,
    cols: u32,
    units: u32,
    out_stride: u32,
    scale: f32,
}

@group(0) @binding(3) var<storage, read_write> out: array<f32>;
@group(0) @binding(4) var<uniform> p: Embed;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let unit = group.x * 64u + thread;
    let row = token_of(group.y) - p.first;
    if (unit >= p.units || row >= p.n_out) { return; }
    var w: array<vec4<f32>, 8>;
    read_unit(row, p.units, unit, &w);
    for (var at = 0u; at < 32u; at++) {
        let col = unit * 32u + at;
        if (col < p.cols) { out[group.y * p.out_stride + col] = w[at / 4u][at % 4u] * p.scale; }
    }
}
