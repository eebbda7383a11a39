// Tiles of halves, met four at a time.
alias Four = vec4<f16>;
alias Sum = f32;
// The largest number that inputs are scaled to.
const LARGEST: f32 = 1.0;

fn four_of(v: vec4<f32>) -> Four { return vec4<f16>(v); }
fn added(sum: Sum, a: Four, b: Four) -> Sum { return sum + f32(dot(a, b)); }
fn all_of(a: Four) -> Sum { return f32(a.x) + f32(a.y) + f32(a.z) + f32(a.w); }
