//! Made-up prompts of a wanted number of tokens, for servers whose vocabulary nobody knows.
//!
//! How many tokens a word takes, and how many the chat template adds, is learnt from the server: two prompts of
//! different lengths are sent first, and `usage` tells their tokens.

use farpost::engine::Random;

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

/// Makes prompts, of which no two are alike beyond what they share.
#[derive(Clone, Debug)]
pub struct Prompts {
    measure: Measure,
    shared: String,
    n_shared: usize,
}

impl Prompts {
    /// All prompts begin with the same text of about `shared_tokens` tokens.
    pub fn new(measure: Measure, shared_tokens: u32, seed: u64) -> Self {
        let n_shared = measure.words(shared_tokens.into());
        // Another stream than that of the rest.
        Self { measure, shared: words(n_shared, &mut Random::new(!seed)), n_shared }
    }

    /// A prompt of about so many tokens, with one word more than what all share at least.
    pub fn make(&self, tokens: u32, random: &mut Random) -> String {
        let n = self.measure.words(f64::from(tokens) - self.measure.beside);
        let own = words(n.saturating_sub(self.n_shared).max(1), random);
        if self.shared.is_empty() { own } else { format!("{} {own}", self.shared) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn n_words(text: &str) -> usize {
        text.split(' ').count()
    }

    #[test]
    fn prompts_have_as_many_words_as_their_tokens_need() {
        // 12 tokens of a template, 1.5 for each word.
        let measure = Measure::learn([Some(21), Some(45)]);
        assert_eq!(measure, Measure { per_word: 1.5, beside: 12.0, is_learnt: true });
        let prompts = Prompts::new(measure, 0, 1);
        let mut random = Random::new(1);
        assert_eq!(n_words(&prompts.make(312, &mut random)), 200);
        assert_eq!(n_words(&prompts.make(1, &mut random)), 1);
        assert_ne!(prompts.make(50, &mut random), prompts.make(50, &mut random));
    }

    #[test]
    fn what_is_shared_is_the_beginning_and_the_rest_is_not() {
        let prompts = Prompts::new(Measure::UNKNOWN, 10, 1);
        let mut random = Random::new(1);
        let [a, b] = [30, 20].map(|n| prompts.make(n, &mut random));
        assert_eq!((n_words(&a), n_words(&b)), (30, 20));
        let shared = a.split(' ').zip(b.split(' ')).take_while(|(a, b)| a == b).count();
        assert!((10..14).contains(&shared), "{a} / {b}");
        assert_eq!(n_words(&prompts.make(5, &mut random)), 11);
    }

    #[test]
    fn servers_that_tell_no_tokens_are_taken_by_words() {
        assert_eq!(Measure::learn([None, None]), Measure::UNKNOWN);
        assert_eq!(Measure::learn([Some(5), Some(5)]), Measure::UNKNOWN);
        assert_eq!(Measure::learn([Some(12), None]).per_word, 2.0);
    }
}
