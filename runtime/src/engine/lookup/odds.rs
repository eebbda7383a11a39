//! How much of a draft is worth running: the odds that its tokens come true against what a longer step costs.
//!
//! The odds depend on how much the passage found shares with the end of the text, and are learnt from each token that is
//! chosen, whether a draft was run or not: what the passage would have said is known either way. So a text that does
//! not repeat itself turns drafts off, and one that begins to turns them on, at no cost.
//!
//! Costs are constants, not times: a clock would make the rows of a step, and with them the last bits of logits, differ
//! from run to run.

/// What the next best place says of a draft's token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Witness {
    /// There is none.
    None,
    /// The same: lists and records agree on what they repeat.
    Agrees,
    /// Another: there they differ.
    Differs,
}

/// Lengths of passages that are told apart: 1, 2, 3, 4 to 7, 8 to 15, 16 or more tokens.
const KINDS: usize = 6;
/// Chances that the next token is that of a passage, by [`Witness`] and length, before anything is known of the text.
const FIRST: [[f32; KINDS]; 3] =
    [[0.2, 0.3, 0.35, 0.6, 0.8, 0.9], [0.3, 0.5, 0.6, 0.8, 0.9, 0.95], [0.1, 0.2, 0.2, 0.3, 0.4, 0.5]];
/// Weight of the latest token in what is known.
const RATE: f32 = 0.1;
/// Chances are never taken to be better: a draft is no longer than pays with one miss in fifty.
const BEST: f32 = 0.98;
/// Tokens a cost, at least, that make a draft worth its risk; 1 would be those of a plain step.
const LEAST_GAIN: f32 = 1.1;

/// Chance of each kind of passage.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Odds([[f32; KINDS]; 3]);

impl Odds {
    pub(super) fn new() -> Self {
        Self(FIRST)
    }

    /// The text went on as it did after a passage of `shared` tokens, or not.
    pub(super) fn learn(&mut self, witness: Witness, shared: usize, is_right: bool) {
        let chance = &mut self.0[witness as usize][kind(shared)];
        *chance += RATE * (f32::from(u8::from(is_right)) - *chance);
    }

    /// How many tokens to run of those that followed a passage of `shared`, of which `witnesses` are known.
    pub(super) fn worth(&self, shared: usize, witnesses: impl Iterator<Item = Witness>) -> usize {
        let (mut n_best, mut best) = (0, LEAST_GAIN);
        let (mut tokens, mut chance) = (1.0, 1.0);
        for (n, witness) in (1..).zip(witnesses) {
            // Each token that comes true makes the passage longer.
            chance *= self.0[witness as usize][kind(shared + n - 1)].min(BEST);
            tokens += chance;
            let gain = tokens / step_cost(n + 1);
            if gain > best {
                (n_best, best) = (n, gain);
            }
        }
        n_best
    }
}

fn kind(shared: usize) -> usize {
    match shared {
        0..=1 => 0,
        2 => 1,
        3 => 2,
        4..8 => 3,
        8..16 => 4,
        _ => 5,
    }
}

/// Cost of a step of `n_rows` in steps of one row: the first six rows more cost 0.24 each, later ones, in panels, 0.08.
/// Measured: docs/decisions/010-lookup-speculation.md.
fn step_cost(n_rows: usize) -> f32 {
    let more = n_rows.saturating_sub(1);
    let (few, many) = (more.min(6), more.saturating_sub(6));
    1.0 + 0.24 * few as f32 + 0.08 * many as f32
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::iter::repeat_n;

    fn worth(odds: &Odds, shared: usize, most: usize) -> usize {
        odds.worth(shared, repeat_n(Witness::None, most))
    }

    #[test]
    fn short_passages_are_not_worth_a_draft_at_first_and_long_ones_are() {
        let odds = Odds::new();
        assert_eq!([1, 2, 3].map(|shared| worth(&odds, shared, 15)), [0, 0, 0]);
        assert!(worth(&odds, 32, 15) > 10, "{}", worth(&odds, 32, 15));
        assert_eq!(worth(&odds, 32, 4), 4);
        assert_eq!(worth(&odds, 32, 0), 0);
        assert!((1..15).contains(&worth(&odds, 4, 15)), "{}", worth(&odds, 4, 15));
    }

    #[test]
    fn drafts_shrink_to_nothing_as_they_fail_and_come_back_as_they_would_have_come_true() {
        let mut odds = Odds::new();
        let mut lengths = Vec::new();
        for is_right in [[false; 20], [true; 20]].concat() {
            odds.learn(Witness::None, 20, is_right);
            lengths.push(worth(&odds, 20, 15));
        }
        assert!(lengths[..20].is_sorted_by(|a, b| a >= b) && lengths[19] == 0, "{lengths:?}");
        assert!(lengths[20..].is_sorted() && lengths[39] > 8, "{lengths:?}");
    }

    #[test]
    fn a_draft_ends_where_places_begin_to_differ_once_that_is_known_to_tell() {
        let mut odds = Odds::new();
        for _ in 0..20 {
            odds.learn(Witness::Agrees, 6, true);
            odds.learn(Witness::Differs, 10, false);
        }
        let witnesses = repeat_n(Witness::Agrees, 4).chain([Witness::Differs]).chain(repeat_n(Witness::None, 10));
        assert_eq!(odds.worth(6, witnesses), 4);
    }

    #[test]
    fn longer_steps_cost_more_and_less_than_as_many_steps() {
        assert_eq!(step_cost(1), 1.0);
        assert!((1..40).all(|n| step_cost(n) < step_cost(n + 1) && step_cost(n + 1) < (n + 1) as f32));
    }
}
