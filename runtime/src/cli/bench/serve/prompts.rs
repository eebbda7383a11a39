//! Made-up prompts of a wanted number of tokens, for servers whose vocabulary nobody knows.
//!
//! How many tokens a word takes, and how many the chat template adds, is learnt from the server: two prompts of
//! different lengths are sent first, and `usage` tells their tokens. Where ids of the vocabulary are known, prompts of them
//! have exactly the wanted number.

use std::str::FromStr;

use farpost::engine::Random;
use serde_json::Value as Json;

/// Short common words: most vocabularies have one token for each.
const WORDS: &str = "time year people way day man thing woman life child world school state family student group country \
    problem hand part place case week company system program question work number night point home water room mother \
    area money story fact month lot right study book eye job word business issue side kind head house service friend \
    father power hour game line end member law car city name team minute idea body back parent face level office door \
    health person art war history party result change morning reason girl guy moment air teacher force education";

/// Words of the two prompts that are sent to learn.
pub const TRIALS: [usize; 2] = [6, 22];

/// Random words.
pub fn words(n: usize, random: &mut Random) -> String {
    let words: Vec<&str> = WORDS.split_whitespace().collect();
    let drawn = (0..n).map(|_| words[((random.unit() * words.len() as f64) as usize).min(words.len() - 1)]);
    drawn.collect::<Vec<_>>().join(" ")
}

/// Tokens of a prompt as a straight line over its words.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Measure {
    per_word: f64,
    beside: f64,
    /// It was learnt from the server.
    pub is_learnt: bool,
}

impl Measure {
    /// One token a word: all that can be said where the server tells no tokens.
    pub const UNKNOWN: Self = Self { per_word: 1.0, beside: 0.0, is_learnt: false };

    /// From the tokens that the server counted in prompts of [`TRIALS`] words.
    pub fn learn(tokens: [Option<u64>; 2]) -> Self {
        let words = TRIALS.map(|n| n as f64);
        match tokens.map(|n| n.map(|n| n as f64)) {
            [Some(few), Some(many)] if many > few => {
                let per_word = (many - few) / (words[1] - words[0]);
                Self { per_word, beside: (few - per_word * words[0]).max(0.0), is_learnt: true }
            }
            // The second was too long for the model: what a template adds can't be told apart.
            [Some(few), None] if few > 0.0 => Self { per_word: few / words[0], beside: 0.0, is_learnt: true },
            _ => Self::UNKNOWN,
        }
    }

    /// Words of a text of so many tokens beside those that every prompt has.
    fn words(&self, tokens: f64) -> usize {
        (tokens / self.per_word).round().max(0.0) as usize
    }
}

/// A prompt as it is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Prompt {
    Text(String),
    /// Token ids, for completions.
    Ids(Vec<u32>),
}

impl Prompt {
    /// As the value of a field.
    pub fn json(&self) -> Json {
        match self {
            Self::Text(text) => text.as_str().into(),
            Self::Ids(ids) => ids.as_slice().into(),
        }
    }
}

/// Token ids from the first up to, but without, the second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ids(u32, u32);

impl FromStr for Ids {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let ids = text.split_once("..").and_then(|(from, to)| Some(Self(from.parse().ok()?, to.parse().ok()?)));
        ids.filter(|ids| ids.0 < ids.1).ok_or("expected A..B: token ids from A on and below B, such as 1000..30000")
    }
}

impl Ids {
    fn draw(self, n: usize, random: &mut Random) -> Vec<u32> {
        let span = f64::from(self.1 - self.0);
        (0..n).map(|_| (self.0 + (random.unit() * span) as u32).min(self.1 - 1)).collect()
    }
}

/// What prompts are made of.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Material {
    Words(Measure),
    /// Prompts have exactly the tokens that are wanted.
    Ids(Ids),
}

/// Makes prompts, of which no two are alike beyond what they share.
#[derive(Clone, Debug)]
pub enum Prompts {
    Words { measure: Measure, shared: String, n_shared: usize },
    Ids { ids: Ids, shared: Vec<u32> },
}

impl Prompts {
    /// All prompts begin with the same text of about `shared_tokens` tokens.
    pub fn new(material: Material, shared_tokens: u32, seed: u64) -> Self {
        // Another stream than that of the rest.
        let mut random = Random::new(!seed);
        match material {
            Material::Words(measure) => {
                let n_shared = measure.words(shared_tokens.into());
                Self::Words { measure, shared: words(n_shared, &mut random), n_shared }
            }
            Material::Ids(ids) => Self::Ids { ids, shared: ids.draw(shared_tokens as usize, &mut random) },
        }
    }

    /// A prompt of about so many tokens, with one more than what all share at least.
    pub fn make(&self, tokens: u32, random: &mut Random) -> Prompt {
        match self {
            Self::Words { measure, shared, n_shared } => {
                let n = measure.words(f64::from(tokens) - measure.beside);
                let own = words(n.saturating_sub(*n_shared).max(1), random);
                Prompt::Text(if shared.is_empty() { own } else { format!("{shared} {own}") })
            }
            Self::Ids { ids, shared } => {
                let own = ids.draw((tokens as usize).saturating_sub(shared.len()).max(1), random);
                Prompt::Ids([shared.as_slice(), &own].concat())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(prompt: Prompt) -> String {
        match prompt {
            Prompt::Text(text) => text,
            Prompt::Ids(_) => panic!("ids"),
        }
    }

    fn n_words(prompt: Prompt) -> usize {
        text(prompt).split(' ').count()
    }

    #[test]
    fn prompts_have_as_many_words_as_their_tokens_need() {
        // 12 tokens of a template, 1.5 for each word.
        let measure = Measure::learn([Some(21), Some(45)]);
        assert_eq!(measure, Measure { per_word: 1.5, beside: 12.0, is_learnt: true });
        let prompts = Prompts::new(Material::Words(measure), 0, 1);
        let mut random = Random::new(1);
        assert_eq!(n_words(prompts.make(312, &mut random)), 200);
        assert_eq!(n_words(prompts.make(1, &mut random)), 1);
        assert_ne!(prompts.make(50, &mut random), prompts.make(50, &mut random));
    }

    #[test]
    fn what_is_shared_is_the_beginning_and_the_rest_is_not() {
        let prompts = Prompts::new(Material::Words(Measure::UNKNOWN), 10, 1);
        let mut random = Random::new(1);
        let [a, b] = [30, 20].map(|n| text(prompts.make(n, &mut random)));
        assert_eq!([&a, &b].map(|text| text.split(' ').count()), [30, 20]);
        let shared = a.split(' ').zip(b.split(' ')).take_while(|(a, b)| a == b).count();
        assert!((10..14).contains(&shared), "{a} / {b}");
        assert_eq!(n_words(prompts.make(5, &mut random)), 11);
    }

    #[test]
    fn prompts_of_ids_have_exactly_the_tokens_that_are_wanted() {
        let prompts = Prompts::new(Material::Ids("5..9".parse().unwrap()), 10, 1);
        let mut random = Random::new(1);
        let ids = |prompt| match prompt {
            Prompt::Ids(ids) => ids,
            Prompt::Text(text) => panic!("{text}"),
        };
        let [a, b] = [300, 300].map(|n| ids(prompts.make(n, &mut random)));
        assert_eq!((a.len(), b.len(), &a[..10]), (300, 300, &b[..10]));
        assert_ne!(a, b);
        assert!((5..9).all(|id| a.contains(&id)) && a.iter().all(|id| (5..9).contains(id)));
        for wrong in ["", "5", "9..5", "5..5", "-1..5", "a..b", "1..4294967296"] {
            assert!(wrong.parse::<Ids>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn servers_that_tell_no_tokens_are_taken_by_words() {
        assert_eq!(Measure::learn([None, None]), Measure::UNKNOWN);
        assert_eq!(Measure::learn([Some(5), Some(5)]), Measure::UNKNOWN);
        assert_eq!(Measure::learn([Some(12), None]).per_word, 2.0);
    }
}
