//! Which tokens play which part: beginning, ends, unknown, fill in the middle. From the file's keys, and from names
//! that are used for nothing else.

use super::error::TokenizerError;
use super::vocabulary::{TokenKind, Vocabulary};
use crate::gguf::{GgufError, Metadata, Place, Problem};

/// Tokens that ask a model to fill a gap.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FillInMiddle {
    /// Before the text that precedes the gap.
    pub prefix: Option<u32>,
    /// Before the text that follows it.
    pub suffix: Option<u32>,
    /// After which the model writes what belongs there.
    pub middle: Option<u32>,
    /// In place of a gap in training data.
    pub pad: Option<u32>,
    /// Before a repository's name.
    pub repository: Option<u32>,
    /// Between files.
    pub separator: Option<u32>,
}

/// Tokens with a part to play.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Roles {
    /// Begins a text.
    pub bos: Option<u32>,
    /// Ends a text.
    pub eos: Option<u32>,
    /// Ends a turn.
    pub eot: Option<u32>,
    /// Ends a message that is not the last of its turn.
    pub eom: Option<u32>,
    /// Stands for what cannot be said.
    pub unknown: Option<u32>,
    /// Between two texts.
    pub separator: Option<u32>,
    /// Fills rows up.
    pub padding: Option<u32>,
    /// A gap, for encoders.
    pub mask: Option<u32>,
    /// Fill in the middle.
    pub fim: FillInMiddle,
}

/// Names of tokens that end a generation in some model. But for the last they mean nothing else in any.
const STOPS: [&str; 16] = [
    "<|eot_id|>",
    "<|eom_id|>",
    "<|im_end|>",
    "<|end|>",
    "<end_of_turn>",
    "<turn|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|end_of_turn|>",
    "<EOT>",
    "_<EOT>",
    "<|return|>",
    "<|call|>",
    "[EOS]",
    "<｜end▁of▁sentence｜>",
    STRIKE,
];

/// Ends a text in some vocabularies, and is the end of struck-out text in HTML.
const STRIKE: &str = "</s>";

/// Tokens that end a generation, all of them; newer files have it.
const STOP_LIST: &str = "tokenizer.ggml.eos_token_ids";

const EOT: [&str; 5] = ["<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|end_of_turn|>"];
const EOM: [&str; 1] = ["<|eom_id|>"];
const FIM_PREFIX: [&str; 5] = ["<|fim_prefix|>", "<fim-prefix>", "<fim_prefix>", "<PRE>", "<｜fim▁begin｜>"];
const FIM_SUFFIX: [&str; 5] = ["<|fim_suffix|>", "<fim-suffix>", "<fim_suffix>", "<SUF>", "<｜fim▁hole｜>"];
const FIM_MIDDLE: [&str; 5] = ["<|fim_middle|>", "<fim-middle>", "<fim_middle>", "<MID>", "<｜fim▁end｜>"];
const FIM_PAD: [&str; 4] = ["<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>"];
const FIM_REPOSITORY: [&str; 4] = ["<|repo_name|>", "<|fim_repo|>", "<fim-repo>", "<reponame>"];
const FIM_SEPARATOR: [&str; 1] = ["<|file_sep|>"];

/// True for types that no ordinary text is made of.
fn is_marked(kind: TokenKind) -> bool {
    matches!(kind, TokenKind::Control | TokenKind::UserDefined | TokenKind::Unknown)
}

/// The id under `key`, if there is one, which must be in the vocabulary.
pub(super) fn id(metadata: &Metadata, key: &'static str, n_vocab: usize) -> Result<Option<u32>, TokenizerError> {
    // Some writers store -1 for "none".
    if metadata
        .get(key)
        .and_then(|value| value.as_integer())
        .is_some_and(|number| number == -1 || number == i128::from(u32::MAX))
    {
        return Ok(None);
    }
    let Some(found) = metadata.u32(key)? else { return Ok(None) };
    if found as usize >= n_vocab {
        return Err(metadata.defect(key, Problem::NoSuchToken { found, n_vocab }).into());
    }
    Ok(Some(found))
}

/// Marked tokens with one of the `names`, in the order of the names.
fn named(vocabulary: &Vocabulary, marked: &[u32], names: &[&str]) -> Vec<u32> {
    let of = |name: &&str| marked.iter().copied().find(|&id| vocabulary.text(id) == name.as_bytes());
    names.iter().filter_map(of).collect()
}

/// What a vocabulary says about its special tokens.
pub(super) struct Assigned {
    pub(super) roles: Roles,
    /// Tokens that end a generation, in order.
    pub(super) stops: Vec<u32>,
    /// A text token that is looked for in trusted text like a control token.
    pub(super) strike: Option<u32>,
}

/// Reads the roles and turns tokens that end a generation into control tokens, which some files forget.
pub(super) fn assign(metadata: &Metadata, vocabulary: &mut Vocabulary) -> Result<Assigned, TokenizerError> {
    let n_vocab = vocabulary.len();
    let ends = |text: &[u8]| {
        matches!(text.first(), Some(b'<' | b'[' | b'_')) && STOPS.iter().any(|name| name.as_bytes() == text)
    };
    let is_either = |&id: &u32| is_marked(vocabulary.kind(id)) || ends(vocabulary.text(id));
    let mut marked: Vec<u32> = (0..n_vocab as u32).filter(is_either).collect();
    // As ordinary text it is found by name, but it neither stops anything nor vanishes.
    let is_strike = |&id: &u32| !is_marked(vocabulary.kind(id)) && vocabulary.text(id) == STRIKE.as_bytes();
    let strike = marked.iter().copied().find(is_strike);
    marked.retain(|id| !is_strike(id));
    let key = |key: &'static str| id(metadata, key, n_vocab);
    let or_named =
        |found: Option<u32>, names: &[&str]| found.or_else(|| named(vocabulary, &marked, names).first().copied());
    let fim = FillInMiddle {
        prefix: or_named(key("tokenizer.ggml.fim_pre_token_id")?, &FIM_PREFIX),
        suffix: or_named(key("tokenizer.ggml.fim_suf_token_id")?, &FIM_SUFFIX),
        middle: or_named(key("tokenizer.ggml.fim_mid_token_id")?, &FIM_MIDDLE),
        pad: or_named(key("tokenizer.ggml.fim_pad_token_id")?, &FIM_PAD),
        repository: or_named(key("tokenizer.ggml.fim_rep_token_id")?, &FIM_REPOSITORY),
        separator: or_named(key("tokenizer.ggml.fim_sep_token_id")?, &FIM_SEPARATOR),
    };
    // Files spell the separator's key wrong; some newer ones don't.
    let separator = key("tokenizer.ggml.seperator_token_id")?.or(key("tokenizer.ggml.separator_token_id")?);
    let roles = Roles {
        bos: key("tokenizer.ggml.bos_token_id")?,
        eos: key("tokenizer.ggml.eos_token_id")?,
        eot: or_named(key("tokenizer.ggml.eot_token_id")?, &EOT),
        eom: or_named(key("tokenizer.ggml.eom_token_id")?, &EOM),
        unknown: key("tokenizer.ggml.unknown_token_id")?,
        separator,
        padding: key("tokenizer.ggml.padding_token_id")?,
        mask: key("tokenizer.ggml.mask_token_id")?,
        fim,
    };
    let mut stops = named(vocabulary, &marked, &STOPS);
    let has = |stops: &[u32], name: &str| stops.iter().any(|&id| vocabulary.text(id) == name.as_bytes());
    if has(&stops, "<|return|>") && has(&stops, "<|call|>") {
        // There "<|end|>" ends a message and not the turn (gpt-oss).
        stops.retain(|&id| vocabulary.text(id) != b"<|end|>" || Some(id) == roles.eos);
    }
    let eot = roles.eot.filter(|&eot| metadata.contains("tokenizer.ggml.eot_token_id") || stops.contains(&eot));
    for &stop in &stops {
        vocabulary.set_kind(stop, TokenKind::Control);
    }
    stops.extend([roles.eos, eot, roles.eom].into_iter().flatten());
    let listed = metadata.u32s(STOP_LIST)?.unwrap_or_default();
    if let Some((number, &found)) = listed.iter().enumerate().find(|(_, stop)| **stop as usize >= n_vocab) {
        let Place { file, field, offset } = metadata.place_of_entry(STOP_LIST, number);
        return Err(GgufError::Defect { file, field, offset, problem: Problem::NoSuchToken { found, n_vocab } }.into());
    }
    stops.extend(listed);
    stops.sort_unstable();
    stops.dedup();
    Ok(Assigned { roles, stops, strike })
}
