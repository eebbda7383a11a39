//! Which model a command works on: the file named by `--model`, or the one built into the program.

use farpost::Library;
use farpost::{Model, ModelOptions};
use farpost_models::gguf::File;

use super::console::Console;
use super::exit::Failure;
use super::machine::Machine;
use super::pack::{self, PackArgs};

/// The option that names a model.
#[derive(clap::Args, Debug)]
pub struct ModelArgs {
    /// A GGUF file, a folder with one, or the name of a model in the model folder [default: the built-in pocket model]
    #[arg(short, long, value_name = "MODEL")]
    pub model: Option<String>,
}

impl ModelArgs {
    /// Opens and checks the model's file.
    pub fn open(&self) -> Result<File, Failure> {
        match &self.model {
            Some(name) => open(name),
            None => built_in(),
        }
    }

    /// Opens the model, to be run with so much context; with its packed file where that fits.
    pub fn load(&self, context: Option<u32>, packed: PackArgs, console: &Console) -> Result<Model, Failure> {
        let options = ModelOptions {
            context: context.map(|tokens| tokens as usize),
            pack_for: packed.class()?,
            read_ahead_bytes: Machine::look().most_bytes(),
            ..ModelOptions::default()
        };
        let model = Model::from_file(self.open()?, &options)?;
        pack::note(&model, console);
        Ok(model)
    }

    /// What to call the model: the name of its file, without folders, ending and number of its part.
    #[cfg(feature = "server")]
    pub fn short_name(&self) -> String {
        let Some(name) = &self.model else { return "pocket".to_owned() };
        let path = Library::of_user().resolve(name).unwrap_or_else(|_| name.into());
        let stem = path.file_stem().map_or_else(|| name.clone(), |stem| stem.to_string_lossy().into_owned());
        match stem.rsplit_once("-of-").and_then(|(before, _)| before.rsplit_once('-')) {
            Some((whole, number)) if number.bytes().all(|byte| byte.is_ascii_digit()) => whole.to_owned(),
            _ => stem,
        }
    }

    /// True if no other model is named.
    pub fn is_built_in(&self) -> bool {
        self.model.is_none()
    }
}

/// Refuses a model that makes embeddings: it was not made to go on with a text.
pub fn expect_writer(model: &Model) -> Result<(), Failure> {
    if model.pooling().is_none() {
        return Ok(());
    }
    let message = format!("{} makes embeddings and writes no text", model.name());
    Err(Failure::usage(message).hint("'farpost embed' gives its embeddings, 'farpost serve' serves them"))
}

/// Opens the file called `name`: a path, a folder or a name in the model folder.
pub fn open(name: &str) -> Result<File, Failure> {
    Ok(File::open(&Library::of_user().resolve(name)?)?)
}

/// Fails where the program has no model of its own.
#[cfg(feature = "server")]
pub fn check_built_in() -> Result<(), Failure> {
    built_in().map(drop)
}

#[cfg(feature = "pocket")]
fn built_in() -> Result<File, Failure> {
    Ok(farpost_models::pocket::file())
}

#[cfg(not(feature = "pocket"))]
fn built_in() -> Result<File, Failure> {
    Err(Failure::usage("this program has no built-in model").hint("name one with --model"))
}

/// Size of the built-in model's file.
pub fn pocket_bytes() -> Option<u64> {
    #[cfg(feature = "pocket")]
    return Some(farpost_models::pocket::bytes().len() as u64);
    #[cfg(not(feature = "pocket"))]
    return None;
}
