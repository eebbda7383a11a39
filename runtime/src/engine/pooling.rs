//! From the rows of a text to its embedding, as the model's file says: one row of them, or the mean of all.

use farpost_models::families::Pooling;

/// What is known of an embedding while its text is run.
#[derive(Clone, Debug)]
pub(super) struct Pooled {
    pooling: Pooling,
    n_tokens: usize,
    /// Of the rows so far.
    sum: Vec<f64>,
    n_rows: usize,
}

impl Pooled {
    /// Of a text of `n_tokens`, from rows of `width` numbers.
    pub(super) fn new(pooling: Pooling, n_tokens: usize, width: usize) -> Self {
        Self { pooling, n_tokens, sum: vec![0.0; width], n_rows: 0 }
    }

    /// Whether the row of the token at `position` is part of it.
    pub(super) fn wants(&self, position: usize) -> bool {
        match self.pooling {
            Pooling::Mean => true,
            Pooling::First => position == 0,
            Pooling::Last => position + 1 == self.n_tokens,
        }
    }

    /// Whether it is the same though the first tokens are found in the cache and not run.
    pub(super) fn may_skip(&self) -> bool {
        self.pooling == Pooling::Last
    }

    /// Begins anew: the text is run again.
    pub(super) fn restart(&mut self) {
        self.sum.fill(0.0);
        self.n_rows = 0;
    }

    /// Adds a row that is wanted.
    pub(super) fn add(&mut self, row: &[f32]) {
        self.n_rows += 1;
        self.sum.iter_mut().zip(row).for_each(|(sum, number)| *sum += f64::from(*number));
    }

    /// The embedding: the mean of the rows, of length 1 unless it is 0.
    pub(super) fn finish(&self) -> Vec<f32> {
        let length = self.sum.iter().map(|number| number * number).sum::<f64>().sqrt();
        // The mean has the direction of the sum.
        let scale = if length > 0.0 { length.recip() } else { 0.0 };
        self.sum.iter().map(|number| (number * scale) as f32).collect()
    }
}

/// The first `n` numbers of an embedding, made of length 1 again: less to keep, where a model is trained so that the first
/// ones tell most. All of them if there are no more.
pub fn shortened(mut embedding: Vec<f32>, n: usize) -> Vec<f32> {
    if n < embedding.len() {
        embedding.truncate(n);
        let length = embedding.iter().map(|&number| f64::from(number).powi(2)).sum::<f64>().sqrt();
        if length > 0.0 {
            embedding.iter_mut().for_each(|number| *number = (f64::from(*number) / length) as f32);
        }
    }
    embedding
}

/// Bytes that the embedding of a text takes at most, with the rows of a step that it is made of.
pub(super) fn bytes_for(pooling: Pooling, n_tokens: usize, max_rows: usize, width: usize) -> u64 {
    let n_rows = if pooling == Pooling::Mean { n_tokens.min(max_rows) } else { 1 };
    let numbers = |n: usize, bytes: usize| (n as u64).saturating_mul(width as u64).saturating_mul(bytes as u64);
    // The sum, the embedding as it is told, and rows.
    numbers(1, size_of::<f64>()) + numbers(1 + n_rows, size_of::<f32>())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pooled(pooling: Pooling) -> Vec<f32> {
        let mut pooled = Pooled::new(pooling, 3, 2);
        let rows = [[3.0, 4.0], [0.0, 1.0], [-3.0, 7.0]];
        // Once in vain.
        pooled.add(&rows[1]);
        pooled.restart();
        for (position, row) in rows.iter().enumerate() {
            if pooled.wants(position) {
                pooled.add(row);
            }
        }
        pooled.finish()
    }

    #[test]
    fn rows_become_one_of_length_1() {
        assert_eq!(pooled(Pooling::Mean), [0.0, 1.0]);
        assert_eq!(pooled(Pooling::First), [0.6, 0.8]);
        let last = pooled(Pooling::Last);
        assert!((last[0] + 3.0 / 58_f32.sqrt()).abs() < 1e-6 && (last[1] - 7.0 / 58_f32.sqrt()).abs() < 1e-6);
        assert_eq!(Pooled::new(Pooling::Mean, 1, 2).finish(), [0.0, 0.0]);
    }

    #[test]
    fn the_first_numbers_have_length_1_again() {
        assert_eq!(shortened(vec![0.0, 0.6, 0.8], 2), [0.0, 1.0]);
        assert_eq!(shortened(vec![0.0, 0.6, 0.8], 3), [0.0, 0.6, 0.8]);
        assert_eq!(shortened(vec![0.0, 1.0], 1), [0.0]);
    }
}
