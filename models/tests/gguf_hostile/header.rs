//! Magic, version, byte order, and the two counts.

use crate::defect::{Case, all_are_refused, open};
use crate::raw::{Place, Raw};

#[test]
fn a_wrong_magic_says_what_the_file_may_be_instead() {
    let cases: &[Case] = &[
        (|r| r.magic = *b"gguf", "magic", (Place::Magic, 0), "found 'gguf', expected the magic bytes 'GGUF'"),
        (
            |r| r.magic = *b"FUGG",
            "magic",
            (Place::Magic, 0),
            "found 'FUGG' (a GGUF file with its bytes swapped), expected the magic bytes 'GGUF'",
        ),
        (
            |r| r.magic = *b"tjgg",
            "magic",
            (Place::Magic, 0),
            "found 'tjgg' (a GGML file from before GGUF; convert it anew), expected the magic bytes 'GGUF'",
        ),
        (
            |r| r.magic = *b"PK\x03\x04",
            "magic",
            (Place::Magic, 0),
            r"found 'PK\x03\x04' (a zip or PyTorch file), expected the magic bytes 'GGUF'",
        ),
        (
            |r| r.magic = *b"vers",
            "magic",
            (Place::Magic, 0),
            "found 'vers' (perhaps a Git LFS pointer: the text that stands for the model, not the model), \
             expected the magic bytes 'GGUF'",
        ),
        (
            |r| r.magic = *b"<!DO",
            "magic",
            (Place::Magic, 0),
            "found '<!DO' (a web page, not the model), expected the magic bytes 'GGUF'",
        ),
        (
            |r| r.magic = [0, 0xFF, 0x1B, b'['],
            "magic",
            (Place::Magic, 0),
            r"found '\x00\xff\x1b[', expected the magic bytes 'GGUF'",
        ),
    ];
    all_are_refused(cases);
}

#[test]
fn versions_other_than_2_and_3_are_refused() {
    // The table runs over both good versions, so these set their own.
    let big_endian = "this is a big-endian file, only little-endian files are supported \
                      (convert it on the source machine)";
    let cases: &[Case] = &[
        (|r| r.version = 0, "version", (Place::Version, 0), "version 0 is not supported, expected 2 or 3"),
        (
            |r| r.version = 1,
            "version",
            (Place::Version, 0),
            "version 1 is not supported, expected 2 or 3 (version 1 had 32-bit counts; convert the file anew)",
        ),
        (|r| r.version = 4, "version", (Place::Version, 0), "version 4 is not supported, expected 2 or 3"),
        (
            |r| r.version = u32::MAX,
            "version",
            (Place::Version, 0),
            "version 4294967295 is not supported, expected 2 or 3",
        ),
        (|r| r.version = 3_u32.swap_bytes(), "version", (Place::Version, 0), big_endian),
        (|r| r.version = 2_u32.swap_bytes(), "version", (Place::Version, 0), big_endian),
        (|r| r.version = 1_u32.swap_bytes(), "version", (Place::Version, 0), big_endian),
    ];
    all_are_refused(cases);
}

#[test]
fn counts_that_the_file_cannot_hold_are_refused() {
    let cases: &[Case] = &[
        (
            |r| r.n_tensors = Some(u64::MAX),
            "tensor count",
            (Place::TensorCount, 0),
            "claims 18,446,744,073,709,551,615 entries of at least 25 bytes, the file has {left} bytes left",
        ),
        (
            |r| r.n_tensors = Some(1 << 63),
            "tensor count",
            (Place::TensorCount, 0),
            "claims 9,223,372,036,854,775,808 entries of at least 25 bytes, the file has {left} bytes left",
        ),
        (
            // 25 times this is 24 in 64 bits.
            |r| r.n_tensors = Some(u64::MAX / 25 + 2),
            "tensor count",
            (Place::TensorCount, 0),
            "claims 737,869,762,948,382,066 entries of at least 25 bytes, the file has {left} bytes left",
        ),
        (
            |r| r.n_tensors = Some(20),
            "tensor count",
            (Place::TensorCount, 0),
            "claims 20 entries of at least 25 bytes, the file has {left} bytes left",
        ),
        (
            |r| r.n_keys = Some(u64::MAX),
            "metadata count",
            (Place::KeyCount, 0),
            "claims 18,446,744,073,709,551,615 entries of at least 14 bytes, the file has {left} bytes left",
        ),
        (
            |r| r.n_keys = Some(35),
            "metadata count",
            (Place::KeyCount, 0),
            "claims 35 entries of at least 14 bytes, the file has {left} bytes left",
        ),
        (
            |r| (r.n_tensors, r.data) = (Some(131_073), vec![0; 4 << 20]),
            "tensor count",
            (Place::TensorCount, 0),
            "131,073 is more than the limit of 131,072",
        ),
        (
            |r| (r.n_keys, r.data) = (Some(65_537), vec![0; 1 << 20]),
            "metadata count",
            (Place::KeyCount, 0),
            "65,537 is more than the limit of 65,536",
        ),
        // One more tensor than there are: the padding after the last is taken for the next.
        (|r| r.n_tensors = Some(4), "name of tensor number 3", (Place::TensorOffset(2), 8), "the name is empty"),
        // The first tensor is taken for a key, its number of dimensions for a type, the type after "c" runs out.
        (
            |r| (r.n_keys, r.tensors[0].n_dims) = (Some(6), Some(77)),
            "metadata key 'a'",
            (Place::TensorDims(0), 0),
            "value type 77 is unknown, expected 0 to 12",
        ),
    ];
    all_are_refused(cases);
}

#[test]
fn a_file_that_ends_in_its_header_says_where() {
    let whole = Raw::valid().bytes();
    let cases = [
        (0, "magic at byte 0: needs 4 bytes, the file has 0 left"),
        (3, "magic at byte 0: needs 4 bytes, the file has 3 left"),
        (4, "version at byte 4: needs 4 bytes, the file has 0 left"),
        (7, "version at byte 4: needs 4 bytes, the file has 3 left"),
        (8, "tensor count at byte 8: needs 8 bytes, the file has 0 left"),
        (15, "tensor count at byte 8: needs 8 bytes, the file has 7 left"),
        (99, "metadata count at byte 16: needs 8 bytes, the file has 0 left"),
    ];
    for (bytes, expected) in cases {
        let mut head = whole[..whole.len().min(bytes)].to_vec();
        if bytes == 99 {
            // No tensors, so that their count fits.
            head.truncate(16);
            head[8] = 0;
        }
        assert_eq!(open(head).unwrap_err().to_string(), format!("hostile.gguf: {expected}"));
    }
}
