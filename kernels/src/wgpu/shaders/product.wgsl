// What products of rows with stored weights have in common: after step.wgsl and weights.wgsl.

// The input has whole units of 32; else what lies behind its end is not looked at.
override IS_WHOLE: bool = true;
// Each row goes to an expert: rows of the weight are those of its own.
override IS_EXPERT: bool = false;

struct Product {
    // Rows of this part of the weight, and the first of them in the whole.
    n_out: u32,
    first: u32,
    cols: u32,
    units: u32,
    // Vectors from one row of x to the next, floats from one row of the output to the next.
    x_stride: u32,
    out_stride: u32,
    has_bias: u32,
    has_other: u32,
    // Of experts: rows of the weight of one, and slots per row of x.
    expert_rows: u32,
    slots_per_x: u32,
    // Input rows are: 0 all of the step, 1 those with results, else one less than this per row of the step.
    input: u32,
}

@group(0) @binding(3) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read> bias: array<f32>;
// Added to the product: rows as those of the output.
@group(0) @binding(5) var<storage, read> other: array<f32>;
@group(0) @binding(6) var<storage, read> chosen: array<u32>;
@group(0) @binding(7) var<storage, read_write> out: array<f32>;
@group(0) @binding(8) var<uniform> p: Product;

fn n_inputs() -> u32 {
    if (p.input == 1u) { return n_wants(); }
    return select(n_rows() * (p.input - 1u), n_rows(), p.input == 0u);
}

fn read_x(row: u32, four: u32) -> vec4<f32> {
    if (IS_WHOLE) { return x[row * p.x_stride + four]; }
    let left = i32(p.cols) - i32(4u * four);
    if (left <= 0) { return vec4<f32>(0.0); }
    let values = x[row * p.x_stride + four];
    return select(values, vec4<f32>(0.0), vec4<i32>(0, 1, 2, 3) >= vec4<i32>(left));
}

fn put(row: u32, col: u32, value: f32) {
    var sum = value;
    if (p.has_bias != 0u) { sum += bias[col]; }
    if (p.has_other != 0u) { sum += other[row * p.out_stride + col]; }
    out[row * p.out_stride + col] = sum;
}
