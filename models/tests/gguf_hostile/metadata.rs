//! Keys, values, strings and arrays; and values of another type than the program relies on.

use farpost_models::gguf::MemoryNeed;

use crate::defect::{Case, all_are_refused, open};
use crate::raw::{Place, Raw, array, text};

#[test]
fn keys_without_a_usable_name_are_refused() {
    let cases: &[Case] = &[
        (
            |r| r.keys[1].name_length = Some(u64::MAX),
            "name of metadata key number 1",
            (Place::KeyName(1), 0),
            "needs 18,446,744,073,709,551,615 bytes, the file has {left} left",
        ),
        (
            |r| r.keys[1].name_length = Some(422),
            "name of metadata key number 1",
            (Place::KeyName(1), 0),
            "needs 422 bytes, the file has {left} left",
        ),
        (|r| r.keys[1].name.clear(), "name of metadata key number 1", (Place::KeyName(1), 0), "the name is empty"),
        (
            |r| r.keys[1].name = b"toy\0.block_count".to_vec(),
            "name of metadata key number 1",
            (Place::KeyName(1), 0),
            "the name holds a NUL byte",
        ),
        (
            |r| r.keys[1].name = b"toy.\xC3(".to_vec(),
            "name of metadata key number 1",
            (Place::KeyName(1), 0),
            "is not valid UTF-8 (first bad byte is number 4)",
        ),
        (
            |r| r.keys[1].name = vec![b'k'; 65_536],
            "name of metadata key number 1",
            (Place::KeyName(1), 0),
            "65,536 is more than the limit of 65,535",
        ),
        (
            |r| r.key("toy.flags", 4, &[0; 4]),
            "metadata key 'toy.flags'",
            (Place::KeyName(5), 0),
            "occurs twice, first at byte 98",
        ),
        (
            |r| r.keys[1].name = b"general.architecture".to_vec(),
            "metadata key 'general.architecture'",
            (Place::KeyName(1), 0),
            "occurs twice, first at byte 24",
        ),
    ];
    all_are_refused(cases);
    let mut longest = Raw::valid();
    longest.keys[1].name = vec![b'k'; 65_535];
    assert_eq!(open(longest.bytes()).unwrap().metadata().len(), 5);
}

#[test]
fn values_that_are_not_what_they_say_are_refused() {
    let cases: &[Case] = &[
        (
            |r| r.keys[1].kind = 13,
            "metadata key 'toy.block_count'",
            (Place::KeyType(1), 0),
            "value type 13 is unknown, expected 0 to 12",
        ),
        (
            |r| r.keys[1].kind = u32::MAX,
            "metadata key 'toy.block_count'",
            (Place::KeyType(1), 0),
            "value type 4294967295 is unknown, expected 0 to 12",
        ),
        (
            |r| r.keys[0].value = u64::MAX.to_le_bytes().to_vec(),
            "metadata key 'general.architecture'",
            (Place::KeyValue(0), 0),
            "needs 18,446,744,073,709,551,615 bytes, the file has {left} left",
        ),
        (
            |r| r.keys[0].value = (1_u64 << 63).to_le_bytes().to_vec(),
            "metadata key 'general.architecture'",
            (Place::KeyValue(0), 0),
            "needs 9,223,372,036,854,775,808 bytes, the file has {left} left",
        ),
        (
            |r| r.keys[2].value = array(7, 3, &[0, 1, 2]),
            "metadata key 'toy.flags'",
            (Place::KeyValue(2), 14),
            "a bool holds 2, expected 0 or 1",
        ),
        (
            |r| r.key("toy.fact", 7, &[255]),
            "metadata key 'toy.fact'",
            (Place::KeyValue(5), 0),
            "a bool holds 255, expected 0 or 1",
        ),
    ];
    all_are_refused(cases);
}

#[test]
fn arrays_that_the_file_cannot_hold_are_refused() {
    let cases: &[Case] = &[
        (
            |r| r.keys[2].value = array(13, 1, &[0]),
            "metadata key 'toy.flags'",
            (Place::KeyValue(2), 0),
            "value type 13 is unknown, expected 0 to 12",
        ),
        (
            |r| r.keys[2].value = array(9, 1, &array(0, 1, &[0])),
            "metadata key 'toy.flags'",
            (Place::KeyValue(2), 0),
            "an array of arrays is not supported",
        ),
        (
            |r| r.keys[2].value = array(0, u64::MAX, &[]),
            "metadata key 'toy.flags'",
            (Place::KeyValue(2), 4),
            "claims 18,446,744,073,709,551,615 entries of at least 1 bytes, the file has {left} bytes left",
        ),
        (
            // Eight times this is nothing in 64 bits.
            |r| r.keys[2].value = array(10, 1 << 61, &[]),
            "metadata key 'toy.flags'",
            (Place::KeyValue(2), 4),
            "claims 2,305,843,009,213,693,952 entries of at least 8 bytes, the file has {left} bytes left",
        ),
        (
            // Four times this is four in 64 bits.
            |r| r.keys[2].value = array(4, (1 << 62) + 1, &[0; 4]),
            "metadata key 'toy.flags'",
            (Place::KeyValue(2), 4),
            "claims 4,611,686,018,427,387,905 entries of at least 4 bytes, the file has {left} bytes left",
        ),
        (
            |r| r.keys[2].value = array(12, 46, &[]),
            "metadata key 'toy.flags'",
            (Place::KeyValue(2), 4),
            "claims 46 entries of at least 8 bytes, the file has {left} bytes left",
        ),
        (
            |r| r.keys[3].value = array(8, u64::MAX, &[]),
            "metadata key 'toy.words'",
            (Place::KeyValue(3), 4),
            "claims 18,446,744,073,709,551,615 entries of at least 8 bytes, the file has {left} bytes left",
        ),
        (
            |r| r.keys[3].value = array(8, 38, &[]),
            "metadata key 'toy.words'",
            (Place::KeyValue(3), 4),
            "claims 38 entries of at least 8 bytes, the file has {left} bytes left",
        ),
        (
            |r| r.keys[3].value = array(8, 2, &[text(b"one"), u64::MAX.to_le_bytes().to_vec()].concat()),
            "metadata key 'toy.words'",
            (Place::KeyValue(3), 12 + 11),
            "needs 18,446,744,073,709,551,615 bytes, the file has {left} left",
        ),
    ];
    all_are_refused(cases);
}

#[test]
fn an_alignment_that_is_no_small_power_of_two_of_type_u32_is_refused() {
    fn align(raw: &mut Raw, kind: u32, value: &[u8]) {
        raw.key("general.alignment", kind, value);
    }
    let field = "metadata key 'general.alignment'";
    let at = (Place::KeyValue(5), 0);
    let cases: &[Case] = &[
        (|r| align(r, 4, &0_u32.to_le_bytes()), field, at, "alignment 0 is not a power of two from 8 to 1,048,576"),
        (|r| align(r, 4, &1_u32.to_le_bytes()), field, at, "alignment 1 is not a power of two from 8 to 1,048,576"),
        (|r| align(r, 4, &3_u32.to_le_bytes()), field, at, "alignment 3 is not a power of two from 8 to 1,048,576"),
        (|r| align(r, 4, &48_u32.to_le_bytes()), field, at, "alignment 48 is not a power of two from 8 to 1,048,576"),
        (
            |r| align(r, 4, &(1_u32 << 21).to_le_bytes()),
            field,
            at,
            "alignment 2,097,152 is not a power of two from 8 to 1,048,576",
        ),
        (
            |r| align(r, 4, &(1_u32 << 31).to_le_bytes()),
            field,
            at,
            "alignment 2,147,483,648 is not a power of two from 8 to 1,048,576",
        ),
        (
            |r| align(r, 4, &u32::MAX.to_le_bytes()),
            field,
            at,
            "alignment 4,294,967,295 is not a power of two from 8 to 1,048,576",
        ),
        (|r| align(r, 10, &32_u64.to_le_bytes()), field, at, "is a u64 of 32, expected a u32"),
        (|r| align(r, 5, &(-32_i32).to_le_bytes()), field, at, "is an i32 of -32, expected a u32"),
        (|r| align(r, 6, &32_f32.to_le_bytes()), field, at, "is an f32 of 32, expected a u32"),
        (|r| align(r, 7, &[1]), field, at, "is a bool of true, expected a u32"),
        (|r| align(r, 8, &text(b"32")), field, (Place::KeyValue(5), 8), "is a string, expected a u32"),
        (
            |r| align(r, 9, &array(4, 1, &[32, 0, 0, 0])),
            field,
            (Place::KeyValue(5), 12),
            "is an array of 1 u32, expected a u32",
        ),
    ];
    all_are_refused(cases);
}

#[test]
fn keys_the_program_relies_on_are_refused_if_they_are_of_another_type() {
    type Change = fn(&mut Raw);
    let head = |raw: &mut Raw| {
        raw.key("toy.embedding_length", 4, &64_u32.to_le_bytes());
        raw.key("toy.attention.head_count", 4, &4_u32.to_le_bytes());
    };
    let cases: &[(Change, &str)] = &[
        (
            |r| (r.keys[0].kind, r.keys[0].value) = (4, vec![1, 0, 0, 0]),
            "metadata key 'general.architecture' at byte 56: is a u32 of 1, expected a string",
        ),
        (
            |r| r.keys[0].value = text(b"t\xFFy"),
            "metadata key 'general.architecture' at byte 64: is not valid UTF-8 (first bad byte is number 1)",
        ),
        (|r| drop(r.keys.remove(0)), "metadata key 'general.architecture' is missing, expected a string"),
        (
            |r| r.keys[0].value = text(b"other"),
            "metadata key 'other.block_count' is missing, expected an unsigned integer",
        ),
        (
            |r| (r.keys[1].kind, r.keys[1].value) = (8, text(b"2")),
            "metadata key 'toy.block_count' at byte 102: is a string, expected an integer from 0 to 4294967295",
        ),
        (
            |r| (r.keys[1].kind, r.keys[1].value) = (5, (-1_i32).to_le_bytes().to_vec()),
            "metadata key 'toy.block_count' at byte 94: is an i32 of -1, expected an integer from 0 to 4294967295",
        ),
        (
            |r| (r.keys[1].kind, r.keys[1].value) = (10, (1_u64 << 32).to_le_bytes().to_vec()),
            "metadata key 'toy.block_count' at byte 94: is a u64 of 4294967296, expected an integer from 0 to 4294967295",
        ),
        (
            |r| (r.keys[1].kind, r.keys[1].value) = (6, 2_f32.to_le_bytes().to_vec()),
            "metadata key 'toy.block_count' at byte 94: is an f32 of 2, expected an integer from 0 to 4294967295",
        ),
        (
            |r| r.keys[1].value = 16_385_u32.to_le_bytes().to_vec(),
            "metadata key 'toy.block_count' at byte 94: 16,385 is more than the limit of 16,384",
        ),
        (
            |r| r.key("toy.attention.head_count_kv", 9, &array(4, 1, &[1, 0, 0, 0])),
            "metadata key 'toy.attention.head_count_kv' at byte 351: is an array of 1 numbers, \
             expected one number for each layer",
        ),
        (
            |r| r.key("toy.attention.head_count_kv", 9, &array(8, 1, &text(b"1"))),
            "metadata key 'toy.attention.head_count_kv' at byte 351: is an array of 1 string, \
             expected an array of integers from 0 to 4294967295",
        ),
        (
            |r| r.key("toy.attention.head_count_kv", 9, &array(5, 2, &[0xFF; 8])),
            "metadata key 'toy.attention.head_count_kv' at byte 351: is an array of 2 i32, \
             expected an array of integers from 0 to 4294967295",
        ),
    ];
    let mut right = Raw::valid();
    head(&mut right);
    assert_eq!(MemoryNeed::of(&open(right.bytes()).unwrap()).unwrap().layers.len(), 2);
    for (change, expected) in cases {
        let mut raw = right.clone();
        change(&mut raw);
        let file = open(raw.bytes()).expect("the file is whole, its metadata is not what it should be");
        let error = MemoryNeed::of(&file).expect_err(expected);
        assert_eq!(error.to_string(), format!("hostile.gguf: {expected}"));
    }
}

#[test]
fn messages_neither_grow_with_the_file_nor_carry_its_control_characters() {
    let name = format!("\u{1b}[2J{}", "x".repeat(4000));
    let mut unknown_type = Raw::valid();
    unknown_type.key(&name, 99, &[]);
    let mut architecture = Raw::valid();
    architecture.keys[0].value = text(name.as_bytes());
    let mut overlap = Raw::valid();
    (overlap.tensors[0].name, overlap.tensors[1].offset) = (b"\x1b[2J".to_vec(), 0);
    let errors = [
        open(unknown_type.bytes()).unwrap_err(),
        MemoryNeed::of(&open(architecture.bytes()).unwrap()).unwrap_err(),
        open(overlap.bytes()).unwrap_err(),
    ];
    for error in errors.map(|error| error.to_string()) {
        assert!(error.contains(r"\u{1b}[2J") && !error.contains('\u{1b}') && error.len() < 400, "{error}");
    }
}
