// What a step is made of, as the host writes it before every submission.
//
// Words: rows, results, where results begin, then of each row its token, its position and where the tables of its
// sequence begin; of each result its row; of each sequence, pool by pool, where its page table begins; the tables.
const STEP_HEAD: u32 = 4u;
const STEP_ROW: u32 = 4u;

@group(0) @binding(0) var<storage, read> step: array<u32>;

fn n_rows() -> u32 { return step[0]; }
fn n_wants() -> u32 { return step[1]; }
fn token_of(row: u32) -> u32 { return step[STEP_HEAD + STEP_ROW * row]; }
fn position_of(row: u32) -> u32 { return step[STEP_HEAD + STEP_ROW * row + 1u]; }
fn wanted_row(want: u32) -> u32 { return step[step[2] + want]; }

// The page table of a row's sequence in a pool: page of place p is step[table + p].
fn table_of(row: u32, pool: u32) -> u32 { return step[step[STEP_HEAD + STEP_ROW * row + 2u] + pool]; }

// Groups of work beyond what one dimension of a dispatch holds go on in the second.
fn group_number(group: vec3<u32>, n_groups: vec3<u32>) -> u32 { return group.x + group.y * n_groups.x; }

// By its bits: devices need not know numbers that are not finite.
fn is_finite(value: f32) -> bool { return (bitcast<u32>(value) & 0x7F800000u) != 0x7F800000u; }
