//! Tensor descriptions: names, shapes, types, and where the data is said to lie.

use crate::defect::{Case, all_are_refused, open};
use crate::raw::{Place, Raw};

#[test]
fn tensors_without_a_usable_name_are_refused() {
    let field = "name of tensor number 1";
    let at = (Place::TensorName(1), 0);
    let cases: &[Case] = &[
        (
            |r| r.tensors[1].name_length = Some(u64::MAX),
            field,
            at,
            "needs 18,446,744,073,709,551,615 bytes, the file has {left} left",
        ),
        (|r| r.tensors[1].name.clear(), field, at, "the name is empty"),
        (|r| r.tensors[1].name = vec![b'n'; 65], field, at, "65 is more than the limit of 64"),
        (|r| r.tensors[1].name = vec![b'n'; 4000], field, at, "4,000 is more than the limit of 64"),
        (|r| r.tensors[1].name = b"b\0".to_vec(), field, at, "the name holds a NUL byte"),
        (|r| r.tensors[1].name = vec![0x80], field, at, "is not valid UTF-8 (first bad byte is number 0)"),
        (
            |r| r.tensors[2].name = b"a".to_vec(),
            "tensor 'a' name",
            (Place::TensorName(2), 0),
            "occurs twice, first at byte 224",
        ),
    ];
    all_are_refused(cases);
    let mut longest = Raw::valid();
    longest.tensors[1].name = vec![b'n'; 64];
    assert!(open(longest.bytes()).unwrap().tensor(&"n".repeat(64)).is_some());
}

#[test]
fn shapes_that_overflow_or_are_not_whole_blocks_are_refused() {
    let field = "tensor 'b' dimensions";
    let at = (Place::TensorDims(1), 0);
    let cases: &[Case] = &[
        (|r| r.tensors[1].dims = vec![32, 1, 1, 1, 1], field, at, "has 5 dimensions, expected at most 4"),
        (|r| r.tensors[1].n_dims = Some(u32::MAX), field, at, "has 4294967295 dimensions, expected at most 4"),
        (|r| r.tensors[1].n_dims = Some(1 << 31), field, at, "has 2147483648 dimensions, expected at most 4"),
        (
            |r| r.tensors[1].dims = vec![32, u64::MAX, u64::MAX],
            field,
            at,
            "dimensions 32 x 18446744073709551615 x 18446744073709551615 overflow the address range",
        ),
        (
            // The number of weights is nothing in 64 bits.
            |r| r.tensors[1].dims = vec![1 << 32, 1 << 32],
            field,
            at,
            "dimensions 4294967296 x 4294967296 overflow the address range",
        ),
        (
            // The weights can be counted, their bytes cannot.
            |r| (r.tensors[1].kind, r.tensors[1].dims) = (0, vec![1 << 32, 1 << 30]),
            field,
            at,
            "dimensions 4294967296 x 1073741824 overflow the address range",
        ),
        (
            // The bytes fit in 64 bits, but not in a slice.
            |r| (r.tensors[1].kind, r.tensors[1].dims) = (0, vec![1 << 61]),
            field,
            at,
            "dimensions 2305843009213693952 overflow the address range",
        ),
        (
            // Blocks of 34 bytes: rounding the row down first must not hide the overflow.
            |r| r.tensors[1].dims = vec![u64::MAX - 31],
            field,
            at,
            "dimensions 18446744073709551584 overflow the address range",
        ),
        (
            // A zero elsewhere makes no overflow right.
            |r| r.tensors[1].dims = vec![32, 0, 1 << 40, 1 << 40],
            field,
            at,
            "dimensions 32 x 0 x 1099511627776 x 1099511627776 overflow the address range",
        ),
        (|r| r.tensors[1].dims[0] = 33, field, at, "rows of 33 weights are not whole blocks of 32 weights (q8_0)"),
        (|r| r.tensors[1].dims[0] = 16, field, at, "rows of 16 weights are not whole blocks of 32 weights (q8_0)"),
        (
            |r| r.tensors[1].dims[0] = u64::MAX,
            field,
            at,
            "rows of 18,446,744,073,709,551,615 weights are not whole blocks of 32 weights (q8_0)",
        ),
        (|r| r.tensors[1].kind = 12, field, at, "rows of 32 weights are not whole blocks of 256 weights (q4_k)"),
        (|r| r.tensors[1].dims.clear(), field, at, "rows of 1 weights are not whole blocks of 32 weights (q8_0)"),
    ];
    all_are_refused(cases);
}

#[test]
fn types_that_hold_no_weights_are_refused_by_name() {
    let field = "tensor 'b' type";
    let at = (Place::TensorType(1), 0);
    let cases: &[Case] = &[
        (
            |r| r.tensors[1].kind = 4,
            field,
            at,
            "tensor type q4_2 (id 4) is not supported: it was removed from the format; quantize the model anew",
        ),
        (
            |r| r.tensors[1].kind = 5,
            field,
            at,
            "tensor type q4_3 (id 5) is not supported: it was removed from the format; quantize the model anew",
        ),
        (
            |r| r.tensors[1].kind = 9,
            field,
            at,
            "tensor type q8_1 (id 9) is not supported: it is for intermediate results, not for files",
        ),
        (
            |r| r.tensors[1].kind = 26,
            field,
            at,
            "tensor type i32 (id 26) is not supported: weights are floats or quantized blocks",
        ),
        (
            |r| r.tensors[1].kind = 28,
            field,
            at,
            "tensor type f64 (id 28) is not supported: weights of 64-bit floats are not used; convert them to f32",
        ),
        (
            |r| r.tensors[1].kind = 31,
            field,
            at,
            "tensor type q4_0_4_4 (id 31) is not supported: repacked types were removed from the format; \
             use the plain type, it is packed at load",
        ),
        (
            |r| r.tensors[1].kind = 38,
            field,
            at,
            "tensor type iq4_nl_8_8 (id 38) is not supported: repacked types were removed from the format; \
             use the plain type, it is packed at load",
        ),
        (|r| r.tensors[1].kind = 4242, field, at, "tensor type 4242 is unknown"),
        (|r| r.tensors[1].kind = u32::MAX, field, at, "tensor type 4294967295 is unknown"),
    ];
    all_are_refused(cases);
}

#[test]
fn data_outside_its_section_or_claimed_twice_is_refused() {
    let field = "tensor 'b' offset";
    let at = (Place::TensorOffset(1), 0);
    let cases: &[Case] = &[
        (|r| r.tensors[1].offset = 33, field, at, "offset 33 is not a multiple of the alignment 32"),
        (|r| r.tensors[1].offset = 16, field, at, "offset 16 is not a multiple of the alignment 32"),
        (
            |r| r.tensors[1].offset = u64::MAX,
            field,
            at,
            "offset 18,446,744,073,709,551,615 is not a multiple of the alignment 32",
        ),
        (
            // With the size added it is small again in 64 bits.
            |r| r.tensors[1].offset = u64::MAX - 31,
            field,
            at,
            "offset 18,446,744,073,709,551,584 and 68 bytes reach past the data section of 144 bytes",
        ),
        (
            |r| r.tensors[1].offset = 1 << 63,
            field,
            at,
            "offset 9,223,372,036,854,775,808 and 68 bytes reach past the data section of 144 bytes",
        ),
        (|r| r.tensors[1].offset = 96, field, at, "offset 96 and 68 bytes reach past the data section of 144 bytes"),
        (
            |r| r.tensors[1].dims[1] = 1 << 40,
            field,
            at,
            "offset 32 and 37,383,395,344,384 bytes reach past the data section of 144 bytes",
        ),
        (
            |r| r.data.truncate(143),
            "tensor 'c' offset",
            (Place::TensorOffset(2), 0),
            "offset 128 and 16 bytes reach past the data section of 143 bytes",
        ),
        (
            |r| r.data.clear(),
            "tensor 'a' offset",
            (Place::TensorOffset(0), 0),
            "offset 0 and 32 bytes reach past the data section of 0 bytes",
        ),
        (
            // An empty tensor has a place, too.
            |r| (r.tensors[1].dims[1], r.tensors[1].offset) = (0, 160),
            field,
            at,
            "offset 160 and 0 bytes reach past the data section of 144 bytes",
        ),
        (|r| r.tensors[1].offset = 0, field, at, "offset 0 lies inside tensor 'a'"),
        (
            |r| r.tensors[2].offset = 96,
            "tensor 'c' offset",
            (Place::TensorOffset(2), 0),
            "offset 96 lies inside tensor 'b'",
        ),
        (
            // The one that lies later is named, whichever comes first in the file.
            |r| (r.tensors[0].offset, r.tensors[1].offset) = (64, 0),
            "tensor 'a' offset",
            (Place::TensorOffset(0), 0),
            "offset 64 lies inside tensor 'b'",
        ),
        (
            // The alignment is good, but nobody padded the data section to it: it would begin behind the file's end.
            |r| r.key("general.alignment", 4, &(1_u32 << 20).to_le_bytes()),
            "tensor 'a' offset",
            (Place::TensorOffset(0), 0),
            "offset 0 and 32 bytes reach past the data section of 0 bytes",
        ),
        (
            |r| {
                r.tensors[0].dims[1] = 0;
                r.key("general.alignment", 4, &(1_u32 << 20).to_le_bytes());
            },
            field,
            at,
            "offset 32 is not a multiple of the alignment 1,048,576",
        ),
    ];
    all_are_refused(cases);
}

#[test]
fn odd_but_legal_tensors_are_accepted() {
    let mut raw = Raw::valid();
    // No dimensions: one weight. A zero among them: none, wherever it is said to lie, even beside another tensor.
    raw.tensor("scalar", 0, &[], 160);
    raw.tensor("none", 0, &[0], 0);
    raw.tensor("no rows", 8, &[32, 0], 32);
    raw.tensor("no blocks", 12, &[0, 7], 160);
    raw.data.resize(164, 0);
    let file = open(raw.bytes()).unwrap();
    let sizes: Vec<usize> = file.tensors().iter().map(|tensor| tensor.weight().bytes().len()).collect();
    assert_eq!(sizes, [32, 68, 16, 4, 0, 0, 0]);
    // Without tensors the file may end right after its keys, whatever the alignment.
    let mut bare = Raw { tensors: Vec::new(), data: Vec::new(), alignment: 1, ..Raw::valid() };
    bare.key("general.alignment", 4, &(1_u32 << 20).to_le_bytes());
    assert_eq!(open(bare.bytes()).unwrap().alignment(), 1 << 20);
}
