//! Ids back into text one by one: what cannot be a whole character yet is held back.

use super::tokenize::{Piece, Tokenizer};

/// Turns ids into text as they come. All that [`Detokenizer::push`] gave, and then [`Detokenizer::finish`], joined, is
/// the text of all ids decoded at once, with U+FFFD where they are no UTF-8.
#[derive(Clone, Debug)]
pub struct Detokenizer<'t> {
    tokenizer: &'t Tokenizer,
    state: TextState,
}

impl<'t> Detokenizer<'t> {
    pub(super) fn new(tokenizer: &'t Tokenizer, piece: Piece) -> Self {
        Self { tokenizer, state: TextState { render_special: false, piece, held: Vec::new(), text: String::new() } }
    }

    /// Writes out control tokens too.
    #[must_use]
    pub fn with_special(mut self, render_special: bool) -> Self {
        self.state.render_special = render_special;
        self
    }

    /// The text that is certain with this id, empty if none is yet.
    pub fn push(&mut self, id: u32) -> &str {
        self.state.push(self.tokenizer, id)
    }

    /// True if bytes are held back.
    pub fn is_pending(&self) -> bool {
        !self.state.held.is_empty()
    }

    /// The end of the text: U+FFFD if it breaks off within a character, otherwise nothing.
    pub fn finish(self) -> String {
        self.state.finish()
    }

    /// What is known of the text, for those who cannot borrow the tokenizer for so long.
    pub fn into_state(self) -> TextState {
        self.state
    }
}

/// A [`Detokenizer`] without its tokenizer.
#[derive(Clone, Debug)]
pub struct TextState {
    render_special: bool,
    piece: Piece,
    /// Bytes that may be the beginning of a character: at most three.
    held: Vec<u8>,
    text: String,
}

impl TextState {
    /// As [`Detokenizer::push`]; `tokenizer` is that of all ids before.
    pub fn push(&mut self, tokenizer: &Tokenizer, id: u32) -> &str {
        self.text.clear();
        let bytes = self.piece.next(tokenizer, id, self.render_special);
        self.held.extend_from_slice(bytes);
        let mut done = 0;
        loop {
            let rest = self.held.get(done..).unwrap_or(&[]);
            match std::str::from_utf8(rest) {
                Ok(valid) => {
                    self.text.push_str(valid);
                    done = self.held.len();
                    break;
                }
                Err(error) => {
                    let (valid, _) = rest.split_at(error.valid_up_to());
                    self.text.push_str(&String::from_utf8_lossy(valid));
                    done += error.valid_up_to();
                    let Some(wrong) = error.error_len() else { break };
                    self.text.push(char::REPLACEMENT_CHARACTER);
                    done += wrong;
                }
            }
        }
        self.held.drain(..done);
        &self.text
    }

    /// As [`Detokenizer::finish`].
    pub fn finish(self) -> String {
        String::from_utf8_lossy(&self.held).into_owned()
    }
}
