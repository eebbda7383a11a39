// What products of rows with stored weights have in common: after step.wgsl and weights.wgsl.

// The input has whole units of 32; else what lies behind its end is not looked at.
override IS_WHOLE: bool = true;
// Each row goes to an expert: rows of the weight are those of its own.
override IS_EXPERT: bool = false;
// Not the rows of x are met but their norms.
override HAS_NORM: bool = false;
// Of a gated unit: 1 SiLU, 2 GELU (tanh). Eight rows of the gate and the same of what it is met with take turns.
override GATED: u32 = 0u;
// The product is capped.
override HAS_CAP: bool = false;

struct Product {
    // Results of a row in this part of the weight (of experts: of one of them), and the first of them in the whole.
    n_out: u32,
    first_out: u32,
    // Rows stored in this part.
    n_stored: u32,
    // Of experts: the first row stored here, rows of one expert, slots per row of x.
    first_stored: u32,
    expert_rows: u32,
    slots_per_x: u32,
    cols: u32,
    units: u32,
    // Vectors from one row of x to the next, floats from one row of the output to the next.
    x_stride: u32,
    out_stride: u32,
    // Input rows are: 0 all of the step, 1 those with results, else one less than this per row of the step.
    input: u32,
    // What is added: 0 nothing, 1 rows of other, 2 what is there already.
    sum: u32,
    // Places among the vectors: floats before the bias and one more, 0 for none; vectors of four before the norm's weight.
    bias_at: u32,
    norm_at: u32,
    eps: f32,
    factor: f32,
    cap: f32,
}

@group(0) @binding(3) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read> vectors: array<vec4<f32>>;
// Added to the product: rows as those of the output.
@group(0) @binding(5) var<storage, read> other: array<f32>;
// Of each slot its expert, then its share.
@group(0) @binding(6) var<storage, read> routes: array<vec2<u32>>;
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

// The weight of the norm; behind its end numbers of others, to be met with zeros.
fn norm_weight(four: u32) -> vec4<f32> {
    if (IS_WHOLE) { return vectors[p.norm_at + four]; }
    return vectors[p.norm_at + min(four, (p.cols - 1u) / 4u)];
}

// What a norm multiplies with, from the sum of squares.
fn norm_scale(squares: f32) -> f32 { return 1.0 / sqrt(squares / f32(p.cols) + p.eps); }

// Row of a weight with the gate of a result, or with the result itself; what the gate is met with is eight rows on.
fn stored_row(number: u32) -> u32 {
    if (GATED == 0u) { return number; }
    return number / 8u * 16u + number % 8u;
}

fn unit_of(gate: f32, up: f32) -> f32 {
    if (GATED == 1u) { return gate / (1.0 + exp(min(-gate, 85.0))) * up; }
    // Beyond 20 it is one to the last bit, and exponentials may leave their range.
    let inner = clamp(0.7978845608028654 * (gate + 0.044715 * gate * gate * gate), -20.0, 20.0);
    return 0.5 * gate * (1.0 + tanh(inner)) * up;
}

fn put(row: u32, col: u32, value: f32) {
    var sum = value;
    if (p.bias_at != 0u) {
        let at = p.bias_at - 1u + col;
        sum += vectors[at / 4u][at % 4u];
    }
    let at = row * p.out_stride + col;
    if (p.sum == 1u) { sum += other[at]; }
    if (p.sum == 2u) { sum += out[at]; }
    sum *= p.factor;
    // What is not finite is to show.
    if (HAS_CAP && is_finite(sum)) { sum = p.cap * tanh(clamp(sum / p.cap, -20.0, 20.0)); }
    out[at] = sum;
}
