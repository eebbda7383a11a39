//! Edits of bytes for property tests: overwritten, flipped, inserted, removed, copied, and numbers made extreme.

use proptest::prelude::*;

/// One edit; places are shares of the length that the bytes have then.
#[derive(Clone, Debug)]
enum Edit {
    Byte(u8),
    Flip(u8),
    Insert(Vec<u8>),
    Remove(usize),
    Repeat(usize),
    Narrow(u32),
    Wide(u64),
    Cut,
}

/// An edit, whether it is meant for the head, and where.
#[derive(Clone, Debug)]
pub struct Placed {
    edit: Edit,
    is_in_head: bool,
    place: u32,
}

/// Numbers at which arithmetic goes wrong.
fn extreme() -> impl Strategy<Value = u64> {
    prop_oneof![
        prop::sample::select(vec![0, 1, 2, 31, 32, 33, 255, 256, u64::MAX, 1 << 63, i64::MAX as u64]),
        (0_u32..64, -2_i64..3).prop_map(|(power, more)| (1_u64 << power).wrapping_add_signed(more)),
        (2_u64..300).prop_map(|divisor| u64::MAX / divisor + 1),
        (0_u64..200).prop_map(|less| u64::MAX - less),
        0_u64..600,
        any::<u64>(),
    ]
}

/// One to `most` edits.
pub fn any_edits(most: usize) -> impl Strategy<Value = Vec<Placed>> {
    let edit = prop_oneof![
        2 => any::<u8>().prop_map(Edit::Byte),
        2 => (0_u8..8).prop_map(Edit::Flip),
        1 => prop::collection::vec(any::<u8>(), 1..20).prop_map(Edit::Insert),
        1 => (1_usize..40).prop_map(Edit::Remove),
        1 => (1_usize..80).prop_map(Edit::Repeat),
        2 => extreme().prop_map(|number| Edit::Narrow(number as u32)),
        3 => extreme().prop_map(Edit::Wide),
        1 => Just(Edit::Cut),
    ];
    placed(edit, most)
}

/// One to `most` bytes of another value: lengths mostly stay what they are.
pub fn bytes_changed(most: usize) -> impl Strategy<Value = Vec<Placed>> {
    placed(prop_oneof![any::<u8>().prop_map(Edit::Byte), (0_u8..8).prop_map(Edit::Flip)], most)
}

fn placed(edit: impl Strategy<Value = Edit>, most: usize) -> impl Strategy<Value = Vec<Placed>> {
    let placed = (edit, any::<bool>(), any::<u32>());
    let placed = placed.prop_map(|(edit, is_in_head, place)| Placed { edit, is_in_head, place });
    prop::collection::vec(placed, 1..=most)
}

/// `bytes` after all `edits`; those for the head fall into its first `head` bytes.
pub fn edited(mut bytes: Vec<u8>, edits: &[Placed], head: usize) -> Vec<u8> {
    for Placed { edit, is_in_head, place } in edits {
        let range = if *is_in_head { bytes.len().min(head) } else { bytes.len() };
        if range == 0 {
            break;
        }
        let at = ((u64::from(*place) * range as u64) >> 32) as usize;
        let overwrite = |bytes: &mut Vec<u8>, with: &[u8]| {
            bytes[at..].iter_mut().zip(with).for_each(|(byte, &new)| *byte = new);
        };
        match edit {
            Edit::Byte(new) => bytes[at] = *new,
            Edit::Flip(bit) => bytes[at] ^= 1 << bit,
            Edit::Insert(new) => drop(bytes.splice(at..at, new.iter().copied())),
            Edit::Remove(count) => drop(bytes.drain(at..bytes.len().min(at + count))),
            Edit::Repeat(count) => {
                let again = bytes[at..bytes.len().min(at + count)].to_vec();
                drop(bytes.splice(at..at, again));
            }
            Edit::Narrow(number) => overwrite(&mut bytes, &number.to_le_bytes()),
            Edit::Wide(number) => overwrite(&mut bytes, &number.to_le_bytes()),
            Edit::Cut => bytes.truncate(at),
        }
    }
    bytes
}
