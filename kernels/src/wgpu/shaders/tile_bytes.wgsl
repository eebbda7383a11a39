// Tiles of signed bytes, met four at a time.
alias Four = u32;
alias Sum = i32;
// The largest number that inputs are scaled to.
const LARGEST: f32 = 127.0;

fn four_of(v: vec4<f32>) -> Four { return pack4xI8(vec4<i32>(round(v))); }
fn added(sum: Sum, a: Four, b: Four) -> Sum { return sum + dot4I8Packed(a, b); }
fn all_of(a: Four) -> Sum { return dot4I8Packed(a, 0x01010101u); }
