//! Models in several files whose parts are missing, repeated, mixed up, or say other things than their names.

use std::path::{Path, PathBuf};

use farpost_models::gguf::{File, GgufError};

use crate::raw::{Raw, array, text};
use crate::touch::touch;

/// A folder of its own for one test.
fn folder(name: &str) -> PathBuf {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("hostile-{name}-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

/// Part `number` (from 0) of three, which hold a tensor each.
fn part(number: u16) -> Raw {
    let mut raw = Raw::valid();
    if number > 0 {
        raw.keys.clear();
    }
    raw.key("split.no", 2, &number.to_le_bytes());
    raw.key("split.count", 2, &3_u16.to_le_bytes());
    raw.key("split.tensors.count", 5, &3_i32.to_le_bytes());
    raw.tensors.truncate(1);
    raw.tensors[0].name = format!("t{number}").into_bytes();
    raw.data.truncate(32);
    raw
}

fn path_of(folder: &Path, number: usize) -> PathBuf {
    folder.join(format!("m-{:05}-of-00003.gguf", number + 1))
}

/// Writes three parts and opens the model by its first.
fn opened(folder: &Path, parts: &[Option<Raw>; 3]) -> Result<File, GgufError> {
    for (number, part) in parts.iter().enumerate() {
        let path = path_of(folder, number);
        let _ = std::fs::remove_file(&path);
        if let Some(part) = part {
            std::fs::write(path, part.bytes()).unwrap();
        }
    }
    let file = File::open(&path_of(folder, 0))?;
    touch(&file);
    Ok(file)
}

fn set(raw: &mut Raw, name: &str, kind: u32, value: &[u8]) {
    raw.keys.retain(|key| key.name != name.as_bytes());
    raw.key(name, kind, value);
}

#[test]
fn every_defect_of_a_split_model_names_the_part_and_what_is_wrong_with_it() {
    type Change = fn(&mut [Option<Raw>; 3]);
    fn of(parts: &mut [Option<Raw>; 3], number: usize) -> &mut Raw {
        parts[number].as_mut().expect("all three are there")
    }
    let cases: &[(Change, usize, &str)] = &[
        (|p| p[1] = None, 1, "cannot open it: "),
        (|p| p[2] = None, 2, "cannot open it: "),
        // A part twice under two names, and parts in another order.
        (|p| p[1] = p[0].clone(), 1, "metadata key 'split.no' at byte 244: this file is part 1, its name says part 2"),
        (|p| p[2] = p[1].clone(), 2, "metadata key 'split.no' at byte 44: this file is part 2, its name says part 3"),
        (|p| p.swap(1, 2), 1, "metadata key 'split.no' at byte 44: this file is part 3, its name says part 2"),
        (
            |p| p.swap(0, 1),
            0,
            "metadata key 'split.no' at byte 44: the name says part 1 of 3, the file says part 2 of 3",
        ),
        // Counts that are wrong, alone and against each other.
        (
            |p| set(of(p, 0), "split.count", 2, &4_u16.to_le_bytes()),
            0,
            "the name says part 1 of 3, the file says part 1 of 4",
        ),
        (
            |p| set(of(p, 1), "split.count", 2, &4_u16.to_le_bytes()),
            1,
            "this part belongs to a model of 4 parts, not of 3",
        ),
        (|p| set(of(p, 1), "split.count", 2, &[1, 0]), 1, "this part does not say that it is one of 3"),
        (|p| of(p, 2).keys.retain(|key| key.name != b"split.count"), 2, "this part does not say that it is one of 3"),
        (
            |p| set(of(p, 0), "split.count", 4, &100_000_u32.to_le_bytes()),
            0,
            "100,000 is more than the limit of 99,999",
        ),
        (
            |p| set(of(p, 0), "split.count", 10, &u64::MAX.to_le_bytes()),
            0,
            "18,446,744,073,709,551,615 is more than the limit of 99,999",
        ),
        (
            |p| set(of(p, 0), "split.no", 2, &3_u16.to_le_bytes()),
            0,
            "is 3, expected the number of a part, counted from 0 and below split.count",
        ),
        (
            |p| of(p, 0).keys.retain(|key| key.name != b"split.no"),
            0,
            "metadata key 'split.no' is missing, expected an unsigned integer",
        ),
        (
            |p| set(of(p, 1), "split.tensors.count", 5, &4_i32.to_le_bytes()),
            1,
            "the parts disagree about the number of tensors in all of them",
        ),
        (
            |p| (0..3).for_each(|number| set(of(p, number), "split.tensors.count", 5, &4_i32.to_le_bytes())),
            0,
            "the parts hold 3 tensors together, expected 4",
        ),
        // Values of the wrong type.
        (|p| set(of(p, 0), "split.count", 8, &text(b"3")), 0, "is a string, expected an integer of at least 0"),
        (|p| set(of(p, 0), "split.count", 1, &[0xFD]), 0, "is an i8 of -3, expected an integer of at least 0"),
        (
            |p| set(of(p, 1), "split.no", 6, &1_f32.to_le_bytes()),
            1,
            "is an f32 of 1, expected an integer of at least 0",
        ),
        (
            |p| set(of(p, 2), "split.tensors.count", 9, &array(4, 1, &[3, 0, 0, 0])),
            2,
            "is an array of 1 u32, expected an integer of at least 0",
        ),
        // Parts of different models.
        (|p| of(p, 2).tensors[0].name = b"t0".to_vec(), 2, "tensor 't0' name at byte 106: occurs twice, first in "),
        (
            |p| of(p, 1).key("general.architecture", 8, &text(b"other")),
            1,
            "this part belongs to a model of architecture 'other', the first to one of 'toy'",
        ),
        // Any part is checked as any file is.
        (|p| of(p, 1).magic = *b"gguf", 1, "magic at byte 0: found 'gguf'"),
        (|p| of(p, 2).data.clear(), 2, "offset 0 and 32 bytes reach past the data section of 0 bytes"),
    ];
    let folder = folder("split");
    let right = [0, 1, 2].map(|number| Some(part(number)));
    let file = opened(&folder, &right).unwrap();
    assert_eq!((file.n_parts(), file.tensors().len()), (3, 3));
    for (change, blamed, expected) in cases {
        let mut parts = right.clone();
        change(&mut parts);
        let error = opened(&folder, &parts).expect_err(expected).to_string();
        let place = path_of(&folder, *blamed).display().to_string();
        assert!(
            error.starts_with(&format!("{place}: ")) && error.contains(expected),
            "found    {error}\nexpected {place}: {expected}"
        );
    }
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn a_part_that_cannot_lead_to_the_others_says_why() {
    let folder = folder("alone");
    let path = folder.join("renamed.gguf");
    std::fs::write(&path, part(0).bytes()).unwrap();
    let error = File::open(&path).unwrap_err().to_string();
    assert!(
        error.ends_with(
            "this is one of 3 parts, but its name does not end in -00001-of-00003.gguf, so the others cannot be found"
        ),
        "{error}"
    );
    let error = File::from_bytes("m", part(1).bytes().into()).unwrap_err().to_string();
    assert!(error.ends_with("this is part 2 of 3 and cannot be opened from memory"), "{error}");
    std::fs::remove_dir_all(folder).unwrap();
}
