//! One defect: a change to a valid file, and the message it must give.

use farpost_models::gguf::{File, GgufError};

use crate::raw::{Place, Raw};
use crate::touch::touch;

/// What is changed, the field the message names, where that field begins (a place and bytes after it), and what is
/// wrong with it; `{left}` in that stands for the bytes after a count or length at this place.
pub type Case = (fn(&mut Raw), &'static str, (Place, usize), &'static str);

/// A number with its thousands grouped, as messages have it.
pub fn grouped(number: usize) -> String {
    let digits = number.to_string();
    let first = digits.len() % 3;
    let (head, rest) = digits.split_at(first);
    let mut groups: Vec<&str> = rest.as_bytes().chunks(3).map(|group| std::str::from_utf8(group).unwrap()).collect();
    if !head.is_empty() {
        groups.insert(0, head);
    }
    groups.join(",")
}

/// Opens `bytes` and, if it is a file, reads all of it.
pub fn open(bytes: Vec<u8>) -> Result<File, GgufError> {
    let file = File::from_bytes("hostile.gguf", bytes.into())?;
    touch(&file);
    Ok(file)
}

/// Every change to the valid file must give exactly the message of its line, in both versions of the format.
pub fn all_are_refused(cases: &[Case]) {
    for version in [2, 3] {
        for (number, (change, field, (place, after), problem)) in cases.iter().enumerate() {
            let mut raw = Raw { version, ..Raw::valid() };
            change(&mut raw);
            let (bytes, places) = raw.build();
            let at = places.iter().find(|(known, _)| known == place).expect("the field is in the file").1 + after;
            let problem = problem.replace("{left}", &grouped(bytes.len().saturating_sub(at + 8)));
            let expected = format!("hostile.gguf: {field} at byte {}: {problem}", grouped(at));
            let error = open(bytes).expect_err(&expected);
            assert!(matches!(error, GgufError::Defect { offset, .. } if offset == at as u64), "case {number}: {error}");
            assert_eq!(error.to_string(), expected, "case {number}, version {version}");
        }
    }
}

#[test]
fn the_file_that_is_made_wrong_is_right_at_first() {
    for version in [2, 3] {
        let file = open(Raw { version, ..Raw::valid() }.bytes()).unwrap();
        assert_eq!((file.version(), file.metadata().len(), file.tensors().len()), (version, 5, 3));
    }
}
