//! `farpost tokenize`: text to token ids and back.

use farpost_models::tokenizer::{Special, TokenKind, Tokenizer};

use super::console::{Console, Paint};
use super::exit::Failure;
use super::text::TextsArgs;
use super::{amount, model, plain};

/// Turn text into token ids, or ids back into text
///
/// Reads the text as it is from standard input, a file or the command line; a line break at its end counts. With --json
/// each text gives one line, an array of ids.
#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(flatten)]
    model: model::ModelArgs,
    #[command(flatten)]
    texts: TextsArgs,
    /// Add no special tokens (such as BOS) and read control tokens in the text as text
    #[arg(long)]
    no_special: bool,
    /// The input is ids, separated by spaces, line breaks, commas or brackets; print the text they stand for
    #[arg(long, conflicts_with = "separator")]
    decode: bool,
}

/// Prints ids, pieces or text.
pub fn run(args: &Args, console: &Console) -> Result<(), Failure> {
    let file = args.model.open()?;
    let tokenizer = Tokenizer::from_metadata(file.metadata())?;
    let input = args.texts.input()?;
    if args.decode {
        return decode(args, console, &tokenizer, &input);
    }
    let texts = args.texts.parts(&input);
    for (number, text) in texts.iter().enumerate() {
        let ids = if args.no_special {
            tokenizer.encode(text, Special::AsText)
        } else {
            tokenizer.encode_prompt(text, Special::Parse)
        };
        if console.is_json() {
            console.print_json(&ids.into())?;
        } else {
            let title = if texts.len() > 1 { format!("text {}: ", number + 1) } else { String::new() };
            console.print(&pieces(&tokenizer, &ids, &title, console.paint()))?;
        }
    }
    Ok(())
}

fn decode(args: &Args, console: &Console, tokenizer: &Tokenizer, input: &str) -> Result<(), Failure> {
    let is_between = |c: char| c.is_whitespace() || matches!(c, ',' | '[' | ']');
    let words = input.split(is_between).filter(|word| !word.is_empty());
    let n_vocab = tokenizer.n_vocab();
    let id = |word: &str| {
        if !word.bytes().all(|byte| byte.is_ascii_digit()) {
            let word = plain::shortened(word, 40);
            return Err(Failure::usage(format_args!("'{word}' is no token id, expected whole numbers")));
        }
        let id = word.parse::<u32>().ok().filter(|&id| (id as usize) < n_vocab);
        id.ok_or_else(|| {
            Failure::usage(format_args!(
                "id {word} is outside the vocabulary of {} tokens",
                amount::grouped(n_vocab as u64)
            ))
        })
    };
    let ids = words.map(id).collect::<Result<Vec<u32>, Failure>>()?;
    let bytes = tokenizer.decode(&ids, !args.no_special);
    if console.is_json() {
        return console.print_json(&serde_json::json!({ "text": String::from_utf8_lossy(&bytes) }));
    }
    console.print_bytes(&bytes)
}

/// One line a token: its id, the piece of text, and what kind of token it is where it is not plain text.
fn pieces(tokenizer: &Tokenizer, ids: &[u32], title: &str, paint: Paint) -> String {
    let mut out = format!("{title}{}\n", amount::count(ids.len() as u64, "token"));
    for &id in ids {
        let piece = plain::quoted(tokenizer.token_bytes(id));
        let kind = match tokenizer.kind(id) {
            TokenKind::Normal => "",
            TokenKind::Unknown => "  unknown",
            TokenKind::Control => "  control",
            TokenKind::UserDefined => "  user-defined",
            TokenKind::Unused => "  unused",
            TokenKind::Byte => "  byte",
        };
        out += &format!("{}  {piece}{}\n", paint.cyan(&format!("{id:>7}")), paint.dim(kind));
    }
    out
}
