//! A batch as the stages see it: checked, with rows of one sequence brought together.

use super::attend::{EQUAL_ROWS, n_alike};
use crate::backend::{Batch, DeviceError, KvStore, Row, Sequence, Want};
use crate::checks::{self, check_batch, refuse};
use crate::cpu::kv::KvCache;
use crate::cpu::memory::room;

/// Rows of one sequence with positions one after the other; in steps of few rows all see parts of one length.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span {
    pub(super) sequence: Sequence,
    /// Position of the first row.
    pub(super) position: usize,
    /// Where its rows begin in [`Step::order`].
    pub(super) start: usize,
    pub(super) n_rows: usize,
}

/// The step that runs. Vectors keep their memory from step to step.
#[derive(Default)]
pub(super) struct Step {
    pub(super) rows: Vec<Row>,
    pub(super) want: Vec<Want>,
    /// Row numbers, those of one sequence together and in ascending order.
    pub(super) order: Vec<usize>,
    /// Parts of the sequences.
    pub(super) spans: Vec<Span>,
    /// Each sequence of the step and its length once the step is done.
    pub(super) lens: Vec<(Sequence, usize)>,
}

/// Bounds that batches are held to, and how they are cut.
pub(super) struct Bounds {
    pub(super) of_batch: checks::Bounds,
    /// Rows of a span at most.
    pub(super) span_rows: usize,
}

impl Step {
    /// Room for the largest batch.
    pub(super) fn try_new(max_rows: usize) -> Result<Self, DeviceError> {
        Ok(Self {
            rows: room(max_rows)?,
            want: room(max_rows)?,
            order: room(max_rows)?,
            spans: room(max_rows)?,
            lens: room(max_rows)?,
        })
    }

    /// Takes a batch over, or says what is wrong with it. Pages that the batch writes become the sequences' own.
    pub(super) fn prepare(&mut self, batch: &Batch, bounds: &Bounds, kv: &mut KvCache) -> Result<(), DeviceError> {
        check_batch(batch, &bounds.of_batch, |sequence| kv.is_open(sequence))?;
        self.rows.clear();
        self.rows.extend_from_slice(&batch.rows);
        self.want.clear();
        self.want.extend_from_slice(&batch.want);
        self.order.clear();
        self.order.extend(0..batch.rows.len());
        let rows = &self.rows;
        self.order.sort_unstable_by_key(|&row| (rows[row].sequence, row));
        self.spans.clear();
        self.lens.clear();
        let mut start = 0;
        while start < self.order.len() {
            let sequence = self.rows[self.order[start]].sequence;
            let same = |row: &&usize| self.rows[**row].sequence == sequence;
            let n_rows = self.order[start..].iter().take_while(same).count();
            let len = kv.len(sequence);
            for (number, &row) in self.order[start..start + n_rows].iter().enumerate() {
                let (found, expected) = (self.rows[row].position, len + number);
                if found != expected {
                    return refuse(format!("row {row}: position {found}, expected {expected} in its sequence"));
                }
            }
            if kv.resumable(sequence, len) < len {
                return refuse(format!("sequence {}: positions that its rows look at are gone", sequence.0));
            }
            if !kv.make_writable(sequence, len, len + n_rows) {
                return refuse(format!("sequence {}: {} positions are not reserved", sequence.0, len + n_rows));
            }
            let mut first = 0;
            while first < n_rows {
                let position = len + first;
                let is_equal = batch.rows.len() <= EQUAL_ROWS;
                let most = if is_equal { bounds.span_rows.min(n_alike(position)) } else { bounds.span_rows };
                let n_rows = most.min(n_rows - first);
                self.spans.push(Span { sequence, position, start: start + first, n_rows });
                first += n_rows;
            }
            self.lens.push((sequence, len + n_rows));
            start += n_rows;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::{Limits, WantKind};
    use crate::graph::KvLayer;

    fn cache() -> KvCache {
        let layer = KvLayer { n_kv_heads: 1, key_dim: 32, value_dim: 32, window: None };
        let limits = Limits { kv_tokens: 32, page_tokens: 4, max_sequences: 3, ..Limits::default() };
        let mut cache = KvCache::try_new(&[layer], &limits).unwrap();
        for tokens in [8, 8] {
            let sequence = cache.open().unwrap();
            assert!(cache.reserve(sequence, tokens));
        }
        cache
    }

    fn row(sequence: u32, position: usize) -> Row {
        Row { token: 1, position, sequence: Sequence(sequence) }
    }

    const BOUNDS: Bounds =
        Bounds { of_batch: checks::Bounds { max_rows: 8, n_vocab: 10, max_context: 7 }, span_rows: 2 };

    fn prepared(rows: Vec<Row>, want: Vec<Want>) -> Result<Step, String> {
        let mut step = Step::try_new(8).unwrap();
        let prepared = step.prepare(&Batch { rows, want, interrupt: None }, &BOUNDS, &mut cache());
        prepared.map(|()| step).map_err(|error| error.to_string())
    }

    #[test]
    fn mixed_rows_become_spans_of_their_sequences() {
        let step = prepared(vec![row(1, 0), row(0, 0), row(1, 1), row(0, 1), row(0, 2)], vec![]).unwrap();
        assert_eq!(step.order, [1, 3, 4, 0, 2]);
        let spans: Vec<_> =
            step.spans.iter().map(|span| (span.sequence.0, span.position, span.start, span.n_rows)).collect();
        assert_eq!(spans, [(0, 0, 0, 2), (0, 2, 2, 1), (1, 0, 3, 2)]);
        assert_eq!(step.lens, [(Sequence(0), 3), (Sequence(1), 2)]);
    }

    #[test]
    fn a_batch_that_breaks_the_contract_is_refused_with_the_reason() {
        let want = |row, kind| vec![Want { row, kind }];
        for (rows, want, expected) in [
            ((0..9).map(|position| row(0, position)).collect(), vec![], "a batch of 9 rows, at most 8 fit"),
            (vec![Row { token: 10, ..row(0, 0) }], vec![], "row 0: token 10 of a vocabulary of 10"),
            (vec![row(0, 7)], vec![], "row 0: position 7 of a context of 7"),
            (vec![row(2, 0)], vec![], "row 0: sequence 2 is not open"),
            (vec![row(9, 0)], vec![], "row 0: sequence 9 is not open"),
            (vec![row(0, 0), row(0, 2)], vec![], "row 1: position 2, expected 1 in its sequence"),
            (vec![row(0, 1)], vec![], "row 0: position 1, expected 0 in its sequence"),
            (vec![row(0, 0)], want(1, WantKind::Greedy), "result 0: row 1 of 1"),
            (vec![row(0, 0)], want(0, WantKind::TopK(0)), "result 0: the best 0 of 10, expected 1 to all"),
            (vec![row(0, 0)], want(0, WantKind::TopK(11)), "result 0: the best 11 of 10, expected 1 to all"),
            (vec![row(0, 0)], want(0, WantKind::Score(10)), "result 0: token 10 of a vocabulary of 10"),
        ] {
            assert_eq!(prepared(rows, want).err(), Some(format!("refused: {expected}")));
        }
    }
}
