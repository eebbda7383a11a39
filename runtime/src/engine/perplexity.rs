//! Perplexity of a text, as the field's usual tool measures it.
//!
//! The text is cut into windows that do not overlap; a rest shorter than a window is left out. Each window is run from
//! an empty cache, with its first token replaced by BOS if the vocabulary begins texts with it. Only the second half
//! of a window counts, where there is context enough: of 512 tokens, the last 255 are predicted from all before them.

use std::ops::ControlFlow;

use super::error::EngineError;
use super::session::Session;

/// What was measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Perplexity {
    /// The exponential of the mean surprise.
    pub value: f64,
    /// Standard error of `value`.
    pub standard_error: f64,
    /// Mean of the negative natural logs of the tokens' probabilities.
    pub mean_surprise: f64,
    /// Windows measured.
    pub n_windows: usize,
    /// Windows in the text.
    pub total_windows: usize,
    /// Tokens that counted.
    pub n_tokens: usize,
}

/// Perplexity of `ids`, which are a whole text with BOS if the vocabulary adds it, by windows of `window` tokens.
///
/// `on_step` gets the tokens run so far, and the figures of the windows that are whole, after each step; `Break` ends the
/// measurement there. `None` if no window was whole then.
///
/// # Errors
/// A window below 4 or above the session's context, a text shorter than one window, and as [`Session::score`].
pub fn perplexity(
    session: &mut Session,
    ids: &[u32],
    window: usize,
    on_step: &mut dyn FnMut(usize, Option<&Perplexity>) -> ControlFlow<()>,
) -> Result<Option<Perplexity>, EngineError> {
    if window < 4 || window > session.context() {
        let expected = format!("4 to {}, the session's context", session.context());
        return Err(EngineError::OutOfRange { parameter: "window", found: window, expected });
    }
    let total_windows = ids.len() / window;
    if total_windows == 0 {
        return Err(EngineError::TextTooShort { tokens: ids.len(), window });
    }
    let tokenizer = session.model().tokenizer();
    let bos = tokenizer.bos().filter(|_| tokenizer.adds_bos());
    let (mut sum, mut sum_of_squares, mut n_tokens) = (0.0, 0.0, 0_usize);
    let mut measured = Vec::with_capacity(window);
    let mut so_far: Option<Perplexity> = None;
    for (number, part) in ids.chunks_exact(window).enumerate() {
        measured.clear();
        measured.extend_from_slice(part);
        if let (Some(first), Some(bos)) = (measured.first_mut(), bos) {
            *first = bos;
        }
        let before = number * window;
        let scores =
            session.score_after(&measured, window / 2 + 1, &mut |done| on_step(before + done, so_far.as_ref()))?;
        let Some(scores) = scores else { break };
        for score in scores {
            sum -= score;
            sum_of_squares += score * score;
            n_tokens += 1;
        }
        let n = n_tokens as f64;
        let mean: f64 = sum / n;
        let variance: f64 = (sum_of_squares / n - mean * mean).max(0.0);
        let value = mean.exp();
        let standard_error = value * (variance / (n - 1.0).max(1.0)).sqrt();
        let perplexity = so_far.insert(Perplexity {
            value,
            standard_error,
            mean_surprise: mean,
            n_windows: number + 1,
            total_windows,
            n_tokens,
        });
        if on_step(before + window, Some(perplexity)).is_break() {
            break;
        }
    }
    Ok(so_far)
}

#[cfg(all(test, feature = "pocket"))]
mod tests {
    use super::super::fake::Fake;
    use super::super::session::SessionOptions;
    use super::*;
    use crate::model::Model;
    use std::sync::Arc;

    /// The chance of each token is one in two if it follows the one before in value, else the rest is shared evenly.
    fn logits(n_vocab: usize, tokens: &[u32]) -> Vec<f32> {
        let mut logits = vec![0.0; n_vocab];
        let next = (tokens.last().map_or(0, |&id| id as usize) + 1) % n_vocab;
        logits[next] = ((n_vocab - 1) as f32).ln();
        logits
    }

    fn session(context: usize) -> (Session, Fake, usize) {
        let model = Arc::new(Model::pocket().unwrap());
        let n_vocab = model.graph().n_vocab();
        let fake = Fake::new(move |tokens| logits(n_vocab, tokens));
        let options = SessionOptions { context: Some(context), batch_rows: 5, ..SessionOptions::default() };
        let session = Session::open(model, &fake, &options).unwrap();
        (session, fake, n_vocab)
    }

    #[test]
    fn only_the_second_half_of_each_window_counts() {
        let (mut session, fake, n_vocab) = session(16);
        // In each window of 16, places 0 to 8 go wild and 9 to 15 count on; a rest of 5 is left out.
        let window: Vec<u32> = [9, 3, 70, 2, 44, 8, 91, 20, 30, 31, 32, 33, 34, 35, 36, 50].to_vec();
        let text: Vec<u32> = [&window[..], &window, &window[..5]].concat();
        let mut seen = Vec::new();
        let measured = perplexity(&mut session, &text, 16, &mut |done, so_far| {
            seen.push((done, so_far.map_or(0, |so_far| so_far.n_windows)));
            ControlFlow::Continue(())
        })
        .unwrap()
        .unwrap();
        // Six tokens have one chance in two, the seventh one of 2 (n_vocab - 1).
        let expected = (6.0 * 2.0_f64.ln() + (2.0 * (n_vocab - 1) as f64).ln()) / 7.0;
        assert_eq!((measured.n_windows, measured.total_windows, measured.n_tokens), (2, 2, 14));
        assert!((measured.mean_surprise - expected).abs() < 1e-6, "{measured:?}");
        assert!((measured.value - expected.exp()).abs() < 1e-5);
        let steps = [(5, 0), (10, 0), (15, 0), (16, 1), (21, 1), (26, 1), (31, 1), (32, 2)];
        assert_eq!(seen, steps, "steps of 5, as the session was opened for");
        let tokenizer = session.model().tokenizer();
        let first = fake.steps.lock().unwrap()[0].rows[0].token;
        assert_eq!(first, if tokenizer.adds_bos() { tokenizer.bos().unwrap() } else { 9 });
    }

    #[test]
    fn a_measurement_can_be_ended_early() {
        let (mut session, ..) = session(16);
        let mut ended_after = |n_tokens: usize| {
            let mut on_step =
                |done, _: Option<&_>| if done >= n_tokens { ControlFlow::Break(()) } else { ControlFlow::Continue(()) };
            let measured = perplexity(&mut session, &[1; 64], 16, &mut on_step).unwrap();
            measured.map(|measured| (measured.n_windows, measured.total_windows))
        };
        assert_eq!([ended_after(1), ended_after(16), ended_after(20)], [None, Some((1, 4)), Some((1, 4))]);
    }

    #[test]
    fn windows_and_texts_that_cannot_be_measured_are_refused() {
        let (mut session, ..) = session(16);
        let mut message = |n: usize, window: usize| {
            perplexity(&mut session, &vec![1; n], window, &mut |_, _| ControlFlow::Continue(()))
                .unwrap_err()
                .to_string()
        };
        assert_eq!(message(20, 17), "window is 17, expected 4 to 16, the session's context");
        assert_eq!(message(20, 3), "window is 3, expected 4 to 16, the session's context");
        assert_eq!(message(15, 16), "the text has 15 tokens, expected at least one window of 16");
    }
}
