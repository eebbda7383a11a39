// Brings the parts of attention of a row and head together, as many groups as parts: after step.wgsl.
struct Merge { value_dim: u32, out_stride: u32, }

// Of each part the largest score and the sum of weights, and from the next four on the sums.
@group(0) @binding(1) var<storage, read> parts: array<f32>;
@group(0) @binding(2) var<storage, read_write> out: array<f32>;
@group(0) @binding(3) var<uniform> p: Merge;

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) n_groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let head = group.x;
    let row = group.y;
    let n_parts = n_groups.z;
    let stride = 4u * ((p.value_dim + 3u) / 4u + 1u);
    let start = (row * n_groups.x + head) * n_parts * stride;
    var largest = parts[start];
    for (var part = 1u; part < n_parts; part++) { largest = max(largest, parts[start + part * stride]); }
    var weight_sum = 0.0;
    for (var part = 0u; part < n_parts; part++) {
        let at = start + part * stride;
        weight_sum += parts[at + 1u] * exp(parts[at] - largest);
    }
    for (var col = group.z * 64u + thread; col < p.value_dim; col += 64u * n_parts) {
        var sum = 0.0;
        for (var part = 0u; part < n_parts; part++) {
            let at = start + part * stride;
            sum += parts[at + 4u + col] * exp(parts[at] - largest);
        }
        out[row * p.out_stride + head * p.value_dim + col] = sum / weight_sum;
    }
}
