//! Which models are served: from the command line or a file, each with its name and the settings of its engine.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use farpost::engine::{EngineOptions, Models, ModelsOptions, Opened, Sampling, Speculate};
use farpost::server::{Config, ModelConfig, Served};
use farpost::{Library, Model, ModelError, ModelOptions};
use farpost_kernels::placed::Layers;
use farpost_models::gguf::File;
use farpost_models::template::ChatTemplate;

use crate::console::Console;
use crate::device::GpuLayers;
use crate::exit::{Exit, Failure};
use crate::generation::{MemoryArgs, SpeculateChoice};
use crate::machine::Machine;
use crate::model::{self, ModelArgs};
use crate::pack::{self, PackArgs};
use crate::{amount, device, text};

/// Options that say which models are served and how.
#[derive(clap::Args, Debug)]
pub struct ModelsArgs {
    /// A GGUF file, a folder with one, or the name of a model in the model folder (may be given several times) [default:
    /// the built-in pocket model]
    #[arg(short, long, value_name = "MODEL")]
    model: Vec<String>,
    /// What requests call the model [default: the name of its file]; with several models one for each, in order
    #[arg(long, value_name = "NAME", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    alias: Vec<String>,
    /// A JSON file that lists models with their settings, in place of --model
    #[arg(long, value_name = "FILE", conflicts_with_all = ["model", "alias", "template", "draft"])]
    config: Option<PathBuf>,
    /// Let a smaller model of the same vocabulary guess tokens ahead; each is chosen as without
    #[arg(long, value_name = "MODEL", conflicts_with = "speculate", hide_short_help = true)]
    draft: Option<String>,
    /// Use the chat template in this file instead of the model's own
    #[arg(long, value_name = "FILE", hide_short_help = true)]
    template: Option<String>,
    /// Unload models that were not asked for in N seconds, and load them again when they are
    #[arg(long, value_name = "N", value_parser = amount::whole::<u64>(1..), hide_short_help = true)]
    idle_unload: Option<u64>,
    #[command(flatten)]
    packed: PackArgs,
    /// Write at most N answers at once
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = amount::whole::<usize>(1..=1024))]
    parallel: usize,
    /// Let at most N requests wait; one more is refused
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = amount::whole::<usize>(1..))]
    queue: usize,
    /// Let answers take up to PERCENT of their own time while a prompt is read beside them: more reads prompts sooner
    #[arg(long, value_name = "PERCENT", default_value_t = 150, hide_short_help = true,
          value_parser = amount::whole::<usize>(100..=10_000))]
    pace: usize,
    /// Keep keys and values of N tokens over all answers [default: of four contexts]
    #[arg(long, value_name = "N", value_parser = amount::whole::<usize>(1..))]
    kv_tokens: Option<usize>,
    /// Guess tokens ahead where a text repeats itself, where requests do not say
    #[arg(long, value_name = "HOW", default_value = "off")]
    speculate: SpeculateChoice,
    #[command(flatten)]
    memory: MemoryArgs,
}

/// How to open one model.
struct Opening {
    /// `None` is the built-in model.
    path: Option<PathBuf>,
    draft: Option<PathBuf>,
    model: ModelOptions,
    engine: EngineOptions,
    /// A chat template in place of its own.
    template: Option<String>,
}

impl Opening {
    fn open(&self, console: &Console) -> Result<Opened, ModelError> {
        let model = Model::from_file(self.file()?, &self.model)?;
        let model = match &self.template {
            Some(source) => model.with_template(source)?,
            None => model,
        };
        pack::note(&model, console);
        let draft = self.draft.as_deref().map(|path| {
            // Its texts may be as long as it can: the context asked for is the model's.
            let options = ModelOptions { context: None, ..self.model };
            let draft = Model::from_file(File::open(path)?, &options)?;
            pack::note(&draft, console);
            Ok::<_, ModelError>(draft)
        });
        Ok(Opened { model, draft: draft.transpose()?, options: self.engine.clone() })
    }

    fn file(&self) -> Result<File, ModelError> {
        match &self.path {
            Some(path) => Ok(File::open(path)?),
            #[cfg(feature = "pocket")]
            None => Ok(farpost_models::pocket::file()),
            #[cfg(not(feature = "pocket"))]
            None => unreachable!("a program without a built-in model has refused to start without --model"),
        }
    }
}

/// The file of the model called `name`, which is there.
fn resolve(name: &str) -> Result<PathBuf, Failure> {
    let path = Library::of_user().resolve(name)?;
    match std::fs::metadata(&path) {
        Ok(_) => Ok(path),
        Err(error) => Err(Failure::file(&path, "read it", &error).with_exit(Exit::Model)),
    }
}

/// The chat template in a file. What is wrong with it is told before the model is loaded.
fn template(path: &str) -> Result<String, Failure> {
    let source = text::of_file(path.as_ref())?;
    match ChatTemplate::new(&source, "", "") {
        Ok(_) => Ok(source),
        Err(error) => Err(Failure::usage(format_args!("{path}: {error}"))),
    }
}

impl ModelsArgs {
    /// What opens the models, and how each is served. Names that stand for no file are refused here.
    pub fn models(&self, console: &Console) -> Result<(Models, Vec<Served>), Failure> {
        let config = self.config()?;
        let (mut openings, mut served) = (BTreeMap::new(), Vec::new());
        for (place, wanted) in config.models.iter().enumerate() {
            let of_file = |field: &str, failure: Failure| match &self.config {
                Some(config) => failure.within(format_args!("{}: models[{place}].{field}", config.display())),
                None => failure,
            };
            let named = ModelArgs { model: wanted.model.clone() };
            let path = match &wanted.model {
                Some(name) => Some(resolve(name).map_err(|failure| of_file("model", failure))?),
                None => model::check_built_in().map(|()| None)?,
            };
            let name = wanted.name.clone().unwrap_or_else(|| named.short_name());
            if self.config.is_some() && openings.contains_key(&name) {
                let twice = format_args!("{name:?} is the name of an earlier model, expected one of its own");
                return Err(of_file("name", Failure::usage(twice)));
            }
            // The built-in model writes commands: it takes the best, as everywhere.
            let sampling = if named.is_built_in() { Sampling::greedy() } else { Sampling::default() };
            let (is_on_demand, is_pinned) = (wanted.is_on_demand, wanted.is_pinned);
            let draft = wanted.draft.as_deref().map(resolve).transpose();
            let draft = draft.map_err(|failure| of_file("draft", failure))?;
            served.push(Served {
                speculate: if draft.is_some() { Speculate::draft() } else { self.speculate.0 },
                is_on_demand,
                is_pinned,
                ..Served::new(name.clone(), sampling)
            });
            let mut opening = self.opening(wanted, path, console)?;
            opening.draft = draft;
            opening.template =
                wanted.template.as_deref().map(template).transpose().map_err(|failure| of_file("template", failure))?;
            openings.insert(name, opening);
        }
        let options = ModelsOptions {
            memory_cap: config.memory_cap.or_else(|| device::memory_cap(&self.memory)),
            idle: config.idle.or(self.idle_unload.map(Duration::from_secs)),
        };
        let layers = config.gpu_layers.map_or(self.memory.gpu_layers, |n_layers| GpuLayers(Layers::Last(n_layers)));
        let (console, backends) = (console.clone(), device::backends(self.memory.backend, layers, console)?);
        let open = move |name: &str| match openings.get(name) {
            Some(opening) => opening.open(&console),
            // The server asks for names that are served only, so this is nobody's.
            None => Ok(Opened::new(Model::open(name.as_ref(), &ModelOptions::default())?, EngineOptions::default())),
        };
        Ok((Models::new(Box::new(open), backends, options), served))
    }

    fn config(&self) -> Result<Config, Failure> {
        if let Some(path) = &self.config {
            return Ok(Config::of_file(path)?);
        }
        let n_models = self.model.len().max(1);
        if !self.alias.is_empty() && self.alias.len() != n_models {
            let (aliases, models) = (self.alias.len(), n_models);
            return Err(Failure::usage(format_args!(
                "--alias is given {aliases} times, expected one for each of {models}"
            )));
        }
        for (option, is_given) in [("--template", self.template.is_some()), ("--draft", self.draft.is_some())] {
            if is_given && n_models > 1 {
                let expected = "expected it in the file of --config for several";
                return Err(Failure::usage(format_args!("{option} is for one model, {expected}")));
            }
        }
        let models = (0..n_models).map(|place| ModelConfig {
            name: self.alias.get(place).cloned(),
            model: self.model.get(place).cloned(),
            draft: self.draft.clone(),
            template: self.template.clone(),
            ..ModelConfig::default()
        });
        Ok(Config { models: models.collect(), ..Config::default() })
    }

    fn opening(&self, wanted: &ModelConfig, path: Option<PathBuf>, console: &Console) -> Result<Opening, Failure> {
        let context = wanted.context.or(self.memory.context.map(|tokens| tokens as usize));
        let model = ModelOptions {
            context,
            pack_for: self.packed.class()?,
            read_ahead_bytes: Machine::look().most_bytes(),
            ..ModelOptions::default()
        };
        let engine = EngineOptions {
            context,
            kv_tokens: wanted.kv_tokens.or(self.kv_tokens),
            max_running: wanted.parallel.unwrap_or(self.parallel),
            max_waiting: wanted.queue.unwrap_or(self.queue),
            inter_token_percent: wanted.pace.unwrap_or(self.pace),
            threads: console.threads(),
            kv_type: wanted.kv_type.unwrap_or(self.memory.kv_type.0),
            activations: wanted.activations.unwrap_or(self.memory.activations.0),
            ..EngineOptions::default()
        };
        Ok(Opening { path, draft: None, model, engine, template: None })
    }
}
