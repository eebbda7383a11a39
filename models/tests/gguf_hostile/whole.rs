//! Any damage: every prefix, every bit, and edits of all kinds to valid files. Never a panic, never much memory.

use farpost_kernels::tensor::DType;
use farpost_models::gguf::{File, GgufError, TensorData, Writer};
use proptest::prelude::*;

use crate::defect::open;
use crate::edit::{any_edits, edited};
use crate::memory::peak_of;
use crate::raw::{Place, Raw, array};
use crate::touch::touch;

/// Opening may take this many times a file's size: an empty key has 14 bytes in the file and about ten times as many
/// in memory.
const MOST_TIMES: usize = 16;
/// And this many bytes, for messages and small things.
const MOST_MORE: usize = 4096;

/// Opens `bytes` within the bound of memory and reads all of the file if it is one.
fn open_bounded(bytes: Vec<u8>) -> Result<File, GgufError> {
    let size = bytes.len();
    let (file, peak) = peak_of(|| File::from_bytes("hostile.gguf", bytes.into()));
    assert!(peak <= MOST_TIMES * size + MOST_MORE, "{peak} bytes for a file of {size}");
    let file = file?;
    let (_, peak) = peak_of(|| touch(&file));
    assert!(peak <= MOST_TIMES * size + MOST_MORE, "{peak} bytes to read a file of {size}");
    Ok(file)
}

#[test]
fn every_prefix_of_a_valid_file_is_refused() {
    for version in [2, 3] {
        let whole = Raw { version, ..Raw::valid() }.bytes();
        for length in 0..whole.len() {
            let error = open_bounded(whole[..length].to_vec()).expect_err("something is missing");
            let GgufError::Defect { offset, .. } = error else { panic!("{length}: {error}") };
            assert!(offset <= length as u64, "{length}: {error}");
        }
        open_bounded(whole).unwrap();
    }
}

#[test]
fn every_flipped_bit_gives_an_error_or_a_usable_file() {
    let (whole, places) = Raw::valid().build();
    let head = places.iter().find(|(place, _)| *place == Place::Data).unwrap().1;
    let mut refused = 0;
    for bit in 0..head * 8 {
        let mut bytes = whole.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        if let Err(error) = open_bounded(bytes) {
            assert!(matches!(error, GgufError::Defect { .. }), "bit {bit}: {error}");
            refused += 1;
        }
    }
    // Bits of names, values and padding may do no harm; those of counts, lengths, types and places do.
    assert!(refused > head * 8 / 3, "{refused} of {}", head * 8);
}

#[test]
fn every_number_of_a_file_may_be_extreme() {
    const EXTREMES: [u64; 16] = [
        0,
        1,
        u64::MAX,
        u64::MAX - 7,
        u64::MAX - 31,
        u64::MAX / 2,
        1 << 63,
        (1 << 63) - 32,
        1 << 62,
        1 << 61,
        1 << 60,
        (1 << 32) - 1,
        1 << 32,
        1 << 31,
        1 << 40,
        u64::MAX / 34,
    ];
    let whole = Raw::valid().bytes();
    for at in 0..whole.len() - 8 {
        for extreme in EXTREMES {
            let mut bytes = whole.clone();
            bytes[at..at + 8].copy_from_slice(&extreme.to_le_bytes());
            // Whatever comes of it: within the bounds of memory and without a panic.
            let _ = open_bounded(bytes);
        }
    }
}

/// The most that a file can ask for by itself: as many keys, tensors or entries as its bytes can be.
#[test]
fn a_file_of_nothing_but_small_entries_stays_within_the_bound() {
    let mut keys = Raw { keys: Vec::new(), tensors: Vec::new(), ..Raw::valid() };
    for number in 0..20_000 {
        keys.key(&format!("{number:x}"), 0, &[0]);
    }
    open_bounded(keys.bytes()).unwrap();

    let mut tensors = Raw { keys: Vec::new(), tensors: Vec::new(), ..Raw::valid() };
    for number in 0..20_000 {
        tensors.tensor(&format!("{number:x}"), 0, &[0], 0);
    }
    assert_eq!(open_bounded(tensors.bytes()).unwrap().tensors().len(), 20_000);

    let mut empty_words = Raw::valid();
    empty_words.key("words", 9, &array(8, 100_000, &[0; 800_000]));
    open_bounded(empty_words.bytes()).unwrap();

    let mut small_numbers = Raw::valid();
    small_numbers.key("numbers", 9, &array(0, 100_000, &[0; 100_000]));
    open_bounded(small_numbers.bytes()).unwrap();
}

/// A file with a tensor of every type and a value of every kind, as the writer makes it.
fn rich() -> Vec<u8> {
    let mut writer = Writer::new();
    writer.set("general.architecture", "llama").set("general.alignment", 64_u32);
    writer.set("llama.block_count", 2_u32).set("llama.embedding_length", 64_u64).set("llama.context_length", 128_u16);
    writer.set("llama.attention.head_count", &[4_u32, 2][..]).set("llama.attention.key_length", 16_i32);
    writer.set("f", 1.5_f32).set("d", -0.25_f64).set("b", true).set("i8", -1_i8).set("u8", 1_u8).set("i64", i64::MIN);
    writer.set("flags", &[true, false][..]).set("words", &["", "one", "two"][..]).set("x", &[0.5_f32, 1.0][..]);
    let types: Vec<DType> = DType::all().collect();
    for dtype in &types {
        writer.tensor(dtype.name(), *dtype, &[dtype.block_len(), 2]).unwrap();
    }
    let mut data = writer.start("rich.gguf", Vec::new()).unwrap();
    while let Some((name, bytes)) = data.next_tensor().map(|(name, bytes)| (name.to_owned(), bytes)) {
        data.append(&name, &vec![0x5A; bytes as usize]).unwrap();
    }
    TensorData::finish(data).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(10_000))]

    #[test]
    fn valid_files_with_any_edits_neither_panic_nor_take_much_memory(
        is_rich: bool,
        edits in any_edits(8),
    ) {
        let whole = if is_rich { rich() } else { Raw::valid().bytes() };
        // Most numbers stand in the head: half of the edits are kept there.
        let _ = open_bounded(edited(whole, &edits, if is_rich { 2200 } else { 420 }));
    }

    #[test]
    fn any_bytes_after_a_good_header_neither_panic_nor_take_much_memory(
        n_tensors in 0_u64..4,
        n_keys in 0_u64..4,
        rest in proptest::collection::vec(prop_oneof![3 => Just(0_u8), 2 => 0_u8..16, 1 => any::<u8>()], 0..400),
    ) {
        let head = [&b"GGUF\x03\0\0\0"[..], &n_tensors.to_le_bytes(), &n_keys.to_le_bytes(), &rest].concat();
        let _ = open_bounded(head);
    }
}

#[test]
fn the_rich_file_is_right_at_first() {
    assert_eq!(open(rich()).unwrap().tensors().len(), DType::all().count());
}
