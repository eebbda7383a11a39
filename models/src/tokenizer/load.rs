//! Builds a tokenizer from a file's metadata. Everything a file says is checked here, once.

use super::bpe::Bpe;
use super::byte_level;
use super::error::TokenizerError;
use super::merge::NONE;
use super::pretokenize::{self, Pre};
use super::roles::{self, Assigned};
use super::special::Specials;
use super::spm::{self, Spm};
use super::tokenize::{Additions, Algorithm, Swallowing, Tokenizer};
use super::vocabulary::{LONGEST_TOKEN, TokenKind, Vocabulary};
use super::wordpiece::WordPiece;
use crate::gguf::{GgufError, Metadata, StringArray, room};

pub(super) const TOKENS: &str = "tokenizer.ggml.tokens";
const KINDS: &str = "tokenizer.ggml.token_type";
const SCORES: &str = "tokenizer.ggml.scores";
pub(super) const MERGES: &str = "tokenizer.ggml.merges";
const MODEL: &str = "tokenizer.ggml.model";
const PRE: &str = "tokenizer.ggml.pre";

/// What memory is asked for, in messages.
pub(super) const VOCABULARY: &str = "the vocabulary";

/// Ids are 32 bits wide and the last stands for none; no vocabulary comes near.
const MOST_TOKENS: usize = 1 << 28;

/// Bytes of all tokens together; offsets are 32 bits wide, and aliases may double them.
const MOST_BYTES: usize = 1 << 30;

/// How tokens are spelled in a file.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Spelling {
    /// One character a byte.
    ByteLevel,
    /// '▁' for a space.
    Sentence,
}

struct Source<'m> {
    metadata: &'m Metadata,
    tokens: StringArray<'m>,
}

impl Source<'_> {
    fn file(&self) -> &str {
        self.metadata.file_name()
    }

    fn check_count(&self, key: &'static str, found: usize) -> Result<(), TokenizerError> {
        let expected = self.tokens.len();
        if found == expected {
            return Ok(());
        }
        Err(TokenizerError::WrongCount { place: self.metadata.place(key), found, expected })
    }

    fn kinds(&self) -> Result<Vec<TokenKind>, TokenizerError> {
        let mut kinds = room(self.file(), VOCABULARY, self.tokens.len())?;
        let Some(stored) = self.metadata.i32s(KINDS)? else {
            kinds.resize(self.tokens.len(), TokenKind::Normal);
            return Ok(kinds);
        };
        self.check_count(KINDS, stored.len())?;
        for (token, &id) in stored.iter().enumerate() {
            let found = i64::from(id);
            let wrong = || TokenizerError::Kind { place: self.metadata.place_of_entry(KINDS, token), found };
            kinds.push(TokenKind::from_id(found).ok_or_else(wrong)?);
        }
        Ok(kinds)
    }

    fn scores(&self) -> Result<Vec<f32>, TokenizerError> {
        let missing = || GgufError::MissingKey {
            file: self.file().to_owned(),
            key: SCORES.to_owned(),
            expected: "an array of floats",
        };
        let scores = self.metadata.f32s(SCORES)?.ok_or_else(missing)?;
        self.check_count(SCORES, scores.len())?;
        match scores.iter().position(|score| score.is_nan()) {
            Some(token) => Err(TokenizerError::Score { place: self.metadata.place_of_entry(SCORES, token) }),
            None => Ok(scores),
        }
    }

    /// All tokens as they are written out, not yet indexed, and which of them text may become by itself. Byte tokens
    /// are noted in `bytes`.
    fn vocabulary(
        &self,
        spelling: Spelling,
        bytes: &mut [u32; 256],
    ) -> Result<(Vocabulary, Vec<bool>), TokenizerError> {
        let kinds = self.kinds()?;
        let stored: usize = self.tokens.iter().map(<[u8]>::len).sum();
        if stored > MOST_BYTES {
            return Err(TokenizerError::TooLarge {
                place: self.metadata.place(TOKENS),
                found: stored,
                most: MOST_BYTES,
            });
        }
        let mut vocabulary = Vocabulary::with_room_for(self.file(), kinds.len(), stored)?;
        let mut findable = room(self.file(), VOCABULARY, kinds.len())?;
        for (token, (text, &kind)) in self.tokens.iter().zip(&kinds).enumerate() {
            let (place, found) = (|| self.metadata.place_of_entry(TOKENS, token), text.len());
            if found > LONGEST_TOKEN {
                return Err(TokenizerError::TooLong { place: place(), found, most: LONGEST_TOKEN });
            }
            let byte = match (spelling, kind) {
                (Spelling::Sentence, TokenKind::Byte) => {
                    let show = || String::from_utf8_lossy(text).chars().take(40).collect();
                    let wrong = || TokenizerError::ByteToken { place: place(), found: show() };
                    Some(spm::byte_of(text).ok_or_else(wrong)?)
                }
                _ => None,
            };
            let mut is_text = true;
            vocabulary.push(kind, |arena| match (spelling, kind) {
                (_, TokenKind::Control | TokenKind::Unknown) => arena.extend_from_slice(text),
                (_, TokenKind::UserDefined) => {
                    arena.extend_from_slice(text);
                    is_text = spelling == Spelling::Sentence;
                }
                (Spelling::ByteLevel, _) => {
                    is_text = byte_level::decode(text, arena);
                    if !is_text {
                        arena.extend_from_slice(text);
                    }
                }
                (Spelling::Sentence, _) => match byte {
                    Some(byte) => {
                        is_text = false;
                        arena.push(byte);
                    }
                    None => {
                        // A true space is '▁' before tokens are looked for.
                        is_text = !text.contains(&b' ');
                        with_spaces(text, arena);
                    }
                },
            });
            findable.push(is_text);
            if let Some(byte) = byte {
                bytes[usize::from(byte)] = token as u32;
            }
        }
        Ok((vocabulary, findable))
    }
}

/// Appends `text` with a space for each '▁'.
fn with_spaces(text: &[u8], out: &mut Vec<u8>) {
    let mark = spm::SPACE.as_bytes();
    let mut rest = text;
    while let Some((&byte, after)) = rest.split_first() {
        if byte == mark[0] && rest.starts_with(mark) {
            out.push(b' ');
            rest = &rest[mark.len()..];
        } else {
            out.push(byte);
            rest = after;
        }
    }
}

impl Tokenizer {
    /// The tokenizer that a file describes.
    ///
    /// # Errors
    /// If a key is missing or of the wrong type, arrays differ in length, tokens, scores or merges are not what they
    /// should be, or kind or pre-tokenizer are not supported; the message says which and what was expected.
    pub fn from_metadata(metadata: &Metadata) -> Result<Self, TokenizerError> {
        let model = metadata.required_string(MODEL)?;
        let tokens = metadata.required_strings(TOKENS)?;
        if tokens.is_empty() || tokens.len() > MOST_TOKENS {
            return Err(TokenizerError::Size { place: metadata.place(TOKENS), found: tokens.len(), most: MOST_TOKENS });
        }
        let source = Source { metadata, tokens };
        match model {
            "gpt2" => bpe(&source),
            "llama" => spm(&source),
            "bert" => wordpiece(&source),
            _ => {
                let supported = "gpt2 (byte-level BPE), llama (SentencePiece BPE), bert (WordPiece)";
                Err(TokenizerError::UnknownModel { place: metadata.place(MODEL), found: model.to_owned(), supported })
            }
        }
    }
}

/// What the file says of BOS, EOS and separator, otherwise `default`.
fn additions(metadata: &Metadata, default: Additions) -> Result<Additions, TokenizerError> {
    Ok(Additions {
        bos: metadata.bool("tokenizer.ggml.add_bos_token")?.unwrap_or(default.bos),
        eos: metadata.bool("tokenizer.ggml.add_eos_token")?.unwrap_or(default.eos),
        separator: metadata.bool("tokenizer.ggml.add_sep_token")?.unwrap_or(default.separator),
    })
}

fn bpe(source: &Source<'_>) -> Result<Tokenizer, TokenizerError> {
    let supported = pretokenize::supported;
    let name = source.metadata.string(PRE)?;
    let name =
        name.ok_or_else(|| TokenizerError::NoPreTokenizer { file: source.file().to_owned(), supported: supported() })?;
    let unknown_pre = || TokenizerError::UnknownPreTokenizer {
        place: source.metadata.place(PRE),
        found: name.to_owned(),
        supported: supported(),
    };
    let pre = Pre::from_name(name).ok_or_else(unknown_pre)?;

    let (mut vocabulary, findable) = source.vocabulary(Spelling::ByteLevel, &mut [NONE; 256])?;
    let Assigned { roles, stops, strike } = roles::assign(source.metadata, &mut vocabulary)?;
    // User-defined tokens may also be reached by merging bytes, and some files type single bytes so.
    let mut decoded = Vec::new();
    for id in 0..vocabulary.len() as u32 {
        decoded.clear();
        if vocabulary.kind(id) == TokenKind::UserDefined && byte_level::decode(vocabulary.text(id), &mut decoded) {
            vocabulary.push_alias(id, &decoded);
        }
    }
    vocabulary.index(source.file(), &findable)?;
    let merges = source.metadata.required_strings(MERGES)?;
    let bpe = Bpe::new(source.metadata, &vocabulary, &findable, merges.iter(), pre, roles.unknown)?;
    let default = Additions { bos: pre.adds_bos(), ..Additions::default() };
    Ok(Tokenizer {
        specials: Specials::new(&vocabulary, strike),
        vocabulary,
        algorithm: Algorithm::Bpe(Box::new(bpe)),
        swallowing: Swallowing::new(),
        roles,
        stops,
        additions: additions(source.metadata, default)?,
        tidies: pre.tidies(),
    })
}

fn spm(source: &Source<'_>) -> Result<Tokenizer, TokenizerError> {
    let scores = source.scores()?;
    let mut bytes = [NONE; 256];
    let (mut vocabulary, findable) = source.vocabulary(Spelling::Sentence, &mut bytes)?;
    let Assigned { roles, stops, strike } = roles::assign(source.metadata, &mut vocabulary)?;
    vocabulary.index(source.file(), &findable)?;
    for byte in 0..=255u8 {
        let id = &mut bytes[usize::from(byte)];
        if *id == NONE {
            // Some vocabularies have the byte itself as a token.
            *id = vocabulary.find(&[byte]).unwrap_or(NONE);
        }
        // The other bytes do not occur in UTF-8.
        if *id == NONE && roles.unknown.is_none() && !matches!(byte, 0xC0 | 0xC1 | 0xF5..) {
            return Err(TokenizerError::NoByte { place: source.metadata.place(TOKENS), byte });
        }
    }
    let space_prefix = source.metadata.bool("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
    let spm = Spm::new(source.file(), &vocabulary, &scores, bytes, roles.unknown, space_prefix)?;
    let default = Additions { bos: true, ..Additions::default() };
    Ok(Tokenizer {
        specials: Specials::new(&vocabulary, strike),
        swallowing: swallowing(source.metadata, &vocabulary)?,
        vocabulary,
        algorithm: Algorithm::Spm(Box::new(spm)),
        roles,
        stops,
        additions: additions(source.metadata, default)?,
        tidies: false,
    })
}

/// Phi-3's control tokens take the white space after them along, all but three of them. Its files don't say so, they
/// are known by the model's name.
fn swallowing(metadata: &Metadata, vocabulary: &Vocabulary) -> Result<Swallowing, TokenizerError> {
    let name = metadata.string("general.name")?.unwrap_or("").to_lowercase();
    if !name.contains("phi3") && !name.contains("phi-3") {
        return Ok(Swallowing::new());
    }
    let keeps: [&[u8]; 3] = [b"<unk>", b"<s>", b"<|endoftext|>"];
    let swallows = |&id: &u32| vocabulary.kind(id).is_special() && !keeps.contains(&vocabulary.text(id));
    Ok((0..vocabulary.len() as u32).filter(swallows).collect())
}

fn wordpiece(source: &Source<'_>) -> Result<Tokenizer, TokenizerError> {
    let (mut vocabulary, findable) = source.vocabulary(Spelling::Sentence, &mut [NONE; 256])?;
    let Assigned { mut roles, stops, strike } = roles::assign(source.metadata, &mut vocabulary)?;
    vocabulary.index(source.file(), &findable)?;
    let specials = Specials::new(&vocabulary, strike);
    let named = |name: &str| specials.named(&vocabulary, name);
    let cls = roles::id(source.metadata, "tokenizer.ggml.cls_token_id", vocabulary.len())?;
    roles.bos = roles.bos.or(cls).or_else(|| named("[CLS]"));
    roles.separator = roles.separator.or_else(|| named("[SEP]"));
    roles.unknown = roles.unknown.or_else(|| named("[UNK]"));
    let no_unknown = || TokenizerError::NoUnknown { place: source.metadata.place(TOKENS) };
    let unknown = roles.unknown.ok_or_else(no_unknown)?;
    let default = Additions { bos: true, separator: true, eos: false };
    Ok(Tokenizer {
        specials,
        algorithm: Algorithm::WordPiece(WordPiece::new(&vocabulary, unknown)),
        vocabulary,
        swallowing: Swallowing::new(),
        roles,
        stops,
        additions: additions(source.metadata, default)?,
        tidies: true,
    })
}
