//! How much work the first step of a regular expression is, before any is done.
//!
//! The lexer works with derivatives. That of a sequence whose first parts may be empty is a choice among all of them, and
//! so is that of each rest of it: a hundred thousand times `(a|b)*` would be gigabytes in one step, and nothing stops a
//! step. So expressions are measured while they are no more than what was written.

use llguidance::derivre::raw::ExprSet;
use llguidance::derivre::{ExprRef, RegexBuilder};

use super::Fault;

/// What all sequences of a form that may skip their first part may spread to. The first derivative has about as many words
/// of four bytes; the next ones, which are choices among choices, stay within the fuel of a step.
const WIDEST: u64 = 40_000;

/// Refuses expressions whose derivatives would be too large.
pub(super) fn check(exprs: &ExprSet) -> Result<(), Fault> {
    let sequence = {
        let mut builder = RegexBuilder::new();
        let sequence = builder.mk_regex("[ab][cd]").unwrap_or(ExprRef::INVALID);
        builder.exprset().get_tag(sequence)
    };
    // Parts come before what they are parts of.
    let mut widths: Vec<u64> = Vec::with_capacity(exprs.len());
    let mut sum: u64 = 0;
    for id in 0..exprs.len() {
        let expr = ExprRef::new(id as u32);
        let width = |part: &ExprRef| widths.get(part.as_usize()).copied().unwrap_or(1);
        let parts = if id == 0 { &[] } else { exprs.get_args(expr) };
        let is_sequence = id > 0 && exprs.get_tag(expr) == sequence;
        let n_first = match parts.iter().position(|part| !exprs.is_nullable(*part)) {
            Some(place) if is_sequence => place + 1,
            _ => parts.len(),
        };
        let spread = parts[..n_first].iter().map(width).fold(0, u64::saturating_add).max(1);
        widths.push(spread);
        if is_sequence && n_first > 1 {
            sum = sum.saturating_add(spread);
        }
        if sum > WIDEST {
            return Err(too_large());
        }
    }
    Ok(())
}

/// Refuses a regular expression by itself: one that is none, and one whose derivatives would be too large. `is_search` if
/// it may match anywhere.
pub(super) fn check_regex(regex: &str, is_search: bool) -> Result<(), Fault> {
    let mut builder = RegexBuilder::new();
    let made = if is_search { builder.mk_regex_for_serach(regex) } else { builder.mk_regex(regex) };
    made.map_err(|error| Fault::whole(format!("it is no regular expression that can be enforced: {error}")))?;
    check(builder.exprset())
}

/// What is refused before or while it is compiled.
pub(super) fn too_large() -> Fault {
    Fault::whole("it is too large or too ambiguous to be enforced")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_be_skipped_counts_with_all_that_may_follow() {
        for regex in ["(a|b)*".repeat(100), "(ab|ba)".repeat(4000), "(a?b){0,500}".to_owned(), "\\p{L}{3,}".to_owned()]
        {
            assert_eq!(check_regex(&regex, false), Ok(()), "{}", regex.len());
        }
        for regex in ["(a|b)*".repeat(2000), "a?".repeat(4000), "(a?b?)".repeat(1000)] {
            assert_eq!(check_regex(&regex, false), Err(too_large()), "{}", regex.len());
        }
        assert!(check_regex("(", false).is_err() && check_regex("a\\", false).is_err());
    }
}
