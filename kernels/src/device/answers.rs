//! From rows that were read back to what was asked for.

use crate::backend::{Answer, DeviceError, Interrupt, Want, WantKind};
use crate::cpu::choose::Chooser;
use crate::cpu::isa::Isa;

/// In the place of an id: a logit is not finite.
pub(crate) const NOT_FINITE: u32 = u32::MAX;

/// Results of a submission: what they are, and which rows of it they are of.
pub(crate) struct Part<'b> {
    pub(crate) want: &'b [(usize, Want)],
    pub(crate) wants_logits: bool,
    pub(crate) wants_rows: bool,
    pub(crate) wants_ids: bool,
}

impl<'b> Part<'b> {
    pub(crate) fn new(want: &'b [(usize, Want)]) -> Self {
        let any = |is: fn(WantKind) -> bool| want.iter().any(|(_, want)| is(want.kind));
        Self {
            want,
            wants_ids: any(|kind| kind == WantKind::Greedy),
            wants_rows: any(|kind| kind == WantKind::Hidden),
            wants_logits: any(|kind| !matches!(kind, WantKind::Greedy | WantKind::Hidden)),
        }
    }
}

pub(crate) fn not_finite() -> DeviceError {
    DeviceError::Wrong("logits are not finite".to_owned())
}

pub(crate) fn interrupted(interrupt: Option<&Interrupt>) -> Result<(), DeviceError> {
    if interrupt.is_some_and(Interrupt::is_set) { Err(DeviceError::Interrupted) } else { Ok(()) }
}

/// A row of floats, in the memory of an earlier one where there is any.
pub(crate) fn floats(words: &[[u8; 4]], answer: &mut Answer) -> Result<Vec<f32>, DeviceError> {
    let mut row = match answer {
        Answer::Logits(row) | Answer::Hidden(row) => std::mem::take(row),
        _ => Vec::new(),
    };
    row.clear();
    row.extend(words.iter().map(|word| f32::from_le_bytes(*word)));
    if row.iter().all(|number| number.is_finite()) { Ok(row) } else { Err(not_finite()) }
}

/// Answers from a row of logits.
pub(crate) fn choose(
    kind: WantKind,
    logits: &[[u8; 4]],
    (chooser, isa): (&mut Chooser, Isa),
    answer: &mut Answer,
) -> Result<(), DeviceError> {
    let row = floats(logits, answer)?;
    let k = if let WantKind::TopK(k) = kind { k } else { 0 };
    chooser.begin(k, kind != WantKind::Logits);
    // SAFETY: the set is the one that was detected.
    unsafe { chooser.take(isa, 0, &row) };
    *answer = match kind {
        WantKind::Score(token) => {
            let logit = row.get(token as usize).copied().unwrap_or(f32::NAN);
            Answer::Score { logit, log_sum_exp: chooser.log_sum_exp() }
        }
        WantKind::TopK(k) => {
            let mut best = Vec::with_capacity(k);
            chooser.best_into(&mut best);
            Answer::TopK { best, log_sum_exp: chooser.log_sum_exp() }
        }
        _ => Answer::Logits(row),
    };
    Ok(())
}
