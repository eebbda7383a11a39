//! What the reader of a comparison must know beside its figures: what was not measured alike, and which tests have
//! nothing to stand beside.

use std::path::Path;

use super::compare::{Comparison, Measured};
use crate::amount;
use crate::plain::one_line;

/// Remarks on all tests of a run, each once.
#[derive(Clone, Debug, Default)]
pub struct Remarks {
    differences: Vec<String>,
    alone: Vec<String>,
}

impl Remarks {
    /// Takes note of one test.
    pub fn add(&mut self, now: &Measured, comparison: Option<&Comparison>) {
        let mut once = |remark: String| {
            if !self.differences.contains(&remark) {
                self.differences.push(remark);
            }
        };
        match comparison {
            Some(comparison) => differences(&comparison.before, now).into_iter().for_each(&mut once),
            None => {
                let threads = amount::count(now.threads, "thread");
                self.alone.push(format!("{} ({threads}, {})", now.test, now.kv_type));
            }
        }
    }

    /// The notes, of which there is none where all was alike.
    pub fn notes(&self, file: &Path) -> Vec<String> {
        let note = |what: &str, remarks: &[String]| {
            (!remarks.is_empty()).then(|| one_line(&format!("{}: {what}: {}", file.display(), remarks.join(", "))))
        };
        let notes = [note("not measured alike", &self.differences), note("no such test in it", &self.alone)];
        notes.into_iter().flatten().collect()
    }
}

/// What two runs of a test differ in, but for what is measured. What an earlier version did not write is no difference.
fn differences(before: &Measured, now: &Measured) -> Vec<String> {
    let mut differences = Vec::new();
    let mut differ = |name: &str, before: Option<&str>, now: Option<&str>| {
        if let Some((before, now)) = before.zip(now).filter(|(before, now)| before != now) {
            differences.push(format!("{name} was {before} and is {now}"));
        }
    };
    let packed = |measured: &Measured| Some(if measured.packed.is_some() { "used" } else { "not used" });
    differ("model", Some(&before.model), Some(&now.model));
    differ("instruction set", before.isa.as_deref(), now.isa.as_deref());
    differ("packed file", packed(before), packed(now));
    differ("type of activations", before.activations.as_deref(), now.activations.as_deref());
    differences
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::compare::compare;
    use crate::bench::compare::tests::measured;

    #[test]
    fn every_difference_is_told_once_and_tests_without_another_by_name() {
        let now = measured(50.0, None, 100.0);
        let before = Measured {
            model: "a\nb".to_owned(),
            isa: Some("avx2".to_owned()),
            packed: Some("m.avx2.pack".to_owned()),
            ..now.clone()
        };
        let mut remarks = Remarks::default();
        remarks.add(&now, Some(&compare(&now, &now)));
        assert!(remarks.notes(Path::new("f")).is_empty());
        for _ in 0..2 {
            remarks.add(&now, Some(&compare(&now, &before)));
        }
        let unlike = "f: not measured alike: model was a\\nb and is m, instruction set was avx2 and is scalar, \
                      packed file was used and is not used";
        assert_eq!(remarks.notes(Path::new("f")), [unlike]);
        let other = Measured { activations: Some("int8".to_owned()), isa: None, ..now.clone() };
        let mut remarks = Remarks::default();
        remarks.add(&now, Some(&compare(&now, &other)));
        remarks.add(&now, None);
        remarks.add(&Measured { threads: 1, ..now }, None);
        let notes = [
            "f: not measured alike: type of activations was int8 and is auto",
            "f: no such test in it: tg64 (2 threads, f16), tg64 (1 thread, f16)",
        ];
        assert_eq!(remarks.notes(Path::new("f")), notes);
    }
}
