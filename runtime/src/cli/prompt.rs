//! What a model is given to go on from: a chat as its template writes it, or a text as it is.

use std::io::IsTerminal;
use std::path::PathBuf;

use farpost::Model;
use farpost_models::template::{ChatTemplate, RenderInput, TemplateError};
use farpost_models::tokenizer::Special;
use serde_json::{Value as Json, json};

use super::exit::{Exit, Failure};
use super::text;

/// Where the prompt comes from.
#[derive(clap::Args, Debug)]
pub struct PromptArgs {
    /// The prompt; '-' reads standard input, which is also the default where it is no terminal
    prompt: Option<String>,
    /// Read the prompt from this file
    #[arg(long, value_name = "FILE", conflicts_with = "prompt")]
    file: Option<PathBuf>,
    /// Take the prompt as it is: no chat template, control tokens in it are parsed
    #[arg(long, conflicts_with_all = ["system", "template"])]
    raw: bool,
    #[command(flatten)]
    pub chat: ChatArgs,
}

/// How a conversation is put to the model.
#[derive(clap::Args, Debug)]
pub struct ChatArgs {
    /// A system message, which says what the model shall be
    #[arg(long, value_name = "TEXT")]
    pub system: Option<String>,
    /// Use the chat template in this file instead of the model's own
    #[arg(long, value_name = "FILE")]
    pub template: Option<PathBuf>,
}

impl PromptArgs {
    /// The text asked about.
    pub fn text(&self) -> Result<String, Failure> {
        let text = match (self.prompt.as_deref(), &self.file) {
            (Some("-"), _) => text::of_stdin()?,
            (Some(prompt), _) => return Ok(prompt.to_owned()),
            (None, Some(path)) => text::of_file(path)?,
            (None, None) if !std::io::stdin().is_terminal() => text::of_stdin()?,
            (None, None) => {
                let hint = "for example: farpost run \"turn on the porch light at nine\"";
                return Err(Failure::usage("there is no prompt").hint(hint));
            }
        };
        if self.raw {
            return Ok(text);
        }
        // The line break at the end of a file is no part of what somebody says.
        Ok(text.strip_suffix('\n').map_or(text.as_str(), |line| line.strip_suffix('\r').unwrap_or(line)).to_owned())
    }

    /// Ids of `text` as a prompt of `model`.
    pub fn ids(&self, text: &str, model: &Model) -> Result<Vec<u32>, Failure> {
        if text.trim().is_empty() && !self.raw {
            return Err(Failure::usage("the prompt is empty"));
        }
        if self.raw {
            return Ok(model.tokenizer().encode_prompt(text, Special::Parse));
        }
        let system = self.chat.system.iter().map(|system| json!({ "role": "system", "content": system }));
        let messages: Json = system.chain([json!({ "role": "user", "content": text })]).collect();
        let template = Template::of(model, &self.chat, "--raw completes the prompt as it is")?;
        template.ids(messages, model)
    }
}

/// The chat template in use.
pub enum Template<'m> {
    Own(&'m ChatTemplate),
    Given(Box<ChatTemplate>),
}

impl<'m> Template<'m> {
    /// The one given on the command line, or the model's own; the hint is for a model that has none.
    pub fn of(model: &'m Model, args: &ChatArgs, hint: &str) -> Result<Self, Failure> {
        let Some(path) = &args.template else { return own(model, hint) };
        let given = ChatTemplate::for_tokenizer(&text::of_file(path)?, model.tokenizer());
        let given = given.map_err(|error| Failure::usage(format_args!("{}: {error}", path.display())))?;
        Ok(Self::Given(Box::new(given)))
    }

    /// Ids of a conversation that is to be answered.
    pub fn ids(&self, messages: Json, model: &Model) -> Result<Vec<u32>, Failure> {
        let template = match self {
            Self::Own(template) => template,
            Self::Given(template) => &**template,
        };
        Ok(template.encode(model.tokenizer(), &RenderInput::new(messages))?)
    }
}

fn own<'m>(model: &'m Model, hint: &str) -> Result<Template<'m>, Failure> {
    match model.require_template() {
        Ok(template) => Ok(Template::Own(template)),
        // A model that only completes texts: the hint says how to use it all the same.
        Err(error @ TemplateError::Missing { .. }) => Err(Failure::new(Exit::Model, error).hint(hint)),
        Err(error) => Err(Failure::new(Exit::Model, error)),
    }
}
