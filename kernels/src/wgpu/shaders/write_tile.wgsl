// Writes what a thread made of eight rows of the weight and four inputs: after product.wgsl.
fn write_tile(
    first_row: u32,
    first_input: u32,
    last_input: u32,
    own_row: u32,
    own_input: u32,
    scales: vec4<f32>,
    sums: ptr<function, array<vec4<f32>, 8>>,
) {
    for (var at = 0u; at < 8u; at++) {
        var number = first_row + own_row + 8u * at;
        var values = (*sums)[at] * scales;
        if (GATED != 0u) {
            if (at % 2u == 1u) { continue; }
            number = first_row / 2u + own_row + 4u * at;
            let ups = (*sums)[at + 1u] * scales;
            for (var part = 0u; part < 4u; part++) { values[part] = unit_of(values[part], ups[part]); }
        }
        for (var part = 0u; part < 4u; part++) {
            let input = first_input + own_input + 8u * part;
            if (number < p.n_out && input <= last_input) { put(input, p.first_out + number, values[part]); }
        }
    }
}
