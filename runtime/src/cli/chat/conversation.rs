//! What was said so far, kept short enough for the context.

use serde_json::{Value as Json, json};

use crate::exit::Failure;

/// A system message and turns, user and assistant by turns; the last one is the user's while an answer is awaited.
#[derive(Clone, Debug)]
pub struct Conversation {
    pub system: Option<String>,
    turns: Vec<Turn>,
}

#[derive(Clone, Debug)]
struct Turn {
    role: &'static str,
    text: String,
}

/// A prompt that fits, and what had to go for it.
#[derive(Debug, PartialEq, Eq)]
pub enum Fit {
    /// Token ids, and how many exchanges were dropped.
    Fits { ids: Vec<u32>, n_dropped: usize },
    /// Even alone the last message has so many tokens that there is no room for an answer. It was taken back, and
    /// everything else is as it was before.
    TooLong { n_tokens: usize },
}

impl Conversation {
    /// Nothing said yet.
    pub fn new(system: Option<String>) -> Self {
        Self { system, turns: Vec::new() }
    }

    /// One that was written as `{"messages": [...]}`; `None` if that is none, or one in the middle of an exchange.
    pub fn from_report(report: &Json) -> Option<Self> {
        let mut messages = report.get("messages")?.as_array()?.iter().peekable();
        let text = |message: &Json, role: &str| {
            let is_of = message.get("role")?.as_str()? == role;
            is_of.then(|| message.get("content")?.as_str().map(str::to_owned))?
        };
        let mut conversation = Self::new(
            messages.next_if(|message| text(message, "system").is_some()).and_then(|message| text(message, "system")),
        );
        while let Some(question) = messages.next() {
            conversation.ask(text(question, "user")?);
            conversation.answer(text(messages.next()?, "assistant")?);
        }
        Some(conversation)
    }

    /// How many messages were said.
    pub fn len(&self) -> usize {
        self.turns.len()
    }

    /// Forgets all turns; the system message stays.
    pub fn reset(&mut self) {
        self.turns.clear();
    }

    /// The user says something.
    pub fn ask(&mut self, text: String) {
        self.turns.push(Turn { role: "user", text });
    }

    /// The model has answered.
    pub fn answer(&mut self, text: String) {
        self.turns.push(Turn { role: "assistant", text });
    }

    /// Takes the last turn back.
    pub fn take_back(&mut self) {
        self.turns.pop();
    }

    /// As chat templates take it.
    pub fn messages(&self) -> Json {
        let system = self.system.iter().map(|text| json!({ "role": "system", "content": text }));
        let turns = self.turns.iter().map(|turn| json!({ "role": turn.role, "content": turn.text }));
        system.chain(turns).collect()
    }

    /// The prompt in at most `room` tokens: the oldest exchanges are dropped until it fits.
    pub fn fit(
        &mut self,
        room: usize,
        mut encode: impl FnMut(&Self) -> Result<Vec<u32>, Failure>,
    ) -> Result<Fit, Failure> {
        let mut n_dropped = 0;
        let mut dropped = Vec::new();
        loop {
            let ids = encode(self)?;
            if ids.len() <= room {
                return Ok(Fit::Fits { ids, n_dropped });
            }
            if self.turns.len() <= 1 {
                self.take_back();
                self.turns.splice(..0, dropped);
                return Ok(Fit::TooLong { n_tokens: ids.len() });
            }
            // A question and its answer: what is left begins with the user again.
            dropped.extend(self.turns.drain(..2.min(self.turns.len() - 1)));
            n_dropped += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One token a character of every message.
    fn encode(conversation: &Conversation) -> Result<Vec<u32>, Failure> {
        let messages = conversation.messages();
        let texts = messages.as_array().unwrap().iter().map(|message| message["content"].as_str().unwrap());
        Ok(texts.flat_map(str::bytes).map(u32::from).collect())
    }

    fn conversation() -> Conversation {
        let mut conversation = Conversation::new(Some("sys".to_owned()));
        for text in ["aaaa", "bbbb"] {
            conversation.ask(text.to_owned());
            conversation.answer(text.to_uppercase());
        }
        conversation.ask("cccc".to_owned());
        conversation
    }

    #[test]
    fn the_oldest_exchanges_go_first_and_the_system_message_never() {
        let mut whole = conversation();
        assert!(matches!(whole.fit(23, encode).unwrap(), Fit::Fits { n_dropped: 0, .. }));
        let mut shorter = conversation();
        let Fit::Fits { ids, n_dropped: 1 } = shorter.fit(22, encode).unwrap() else { panic!("one exchange must go") };
        assert_eq!(ids, b"sysbbbbBBBBcccc".map(u32::from));
        let mut shortest = conversation();
        let Fit::Fits { ids, n_dropped: 2 } = shortest.fit(7, encode).unwrap() else { panic!("both must go") };
        assert_eq!(ids, b"syscccc".map(u32::from));
    }

    #[test]
    fn what_was_written_is_read_and_nothing_else() {
        let mut said = conversation();
        said.take_back();
        let report = json!({ "model": "m", "messages": said.messages() });
        let read = Conversation::from_report(&report).unwrap();
        assert_eq!((read.messages(), read.len()), (said.messages(), 4));
        let empty = Conversation::from_report(&json!({ "messages": [] })).unwrap();
        assert_eq!((empty.system, empty.turns.len()), (None, 0));
        let user = json!({ "role": "user", "content": "a" });
        for bad in [
            json!({}),
            json!({ "messages": [user] }),
            json!({ "messages": [user, user] }),
            json!({ "messages": [{ "role": "user", "content": 7 }, { "role": "assistant", "content": "b" }] }),
            json!({ "messages": [user, { "role": "assistant", "content": "b" }, { "role": "system", "content": "c" }] }),
        ] {
            assert!(Conversation::from_report(&bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn a_message_that_never_fits_is_taken_back_and_costs_nothing() {
        let mut conversation = conversation();
        assert_eq!(conversation.fit(6, encode).unwrap(), Fit::TooLong { n_tokens: 7 });
        assert_eq!(encode(&conversation).unwrap(), b"sysaaaaAAAAbbbbBBBB".map(u32::from));
    }
}
