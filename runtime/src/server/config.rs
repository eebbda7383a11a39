//! A file that lists the models of a server, each with its settings.

use std::time::Duration;

use farpost_kernels::backend::{Activations, KvType};
use serde_json::Value as Json;

use super::error::{Invalid, Problem};
use super::json::{self, Fields};
use super::live::{read, wrong};
use super::options::ServerError;

/// Models and what they have in common.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Config {
    /// Bytes that caches, scratch and repacked weights of all models may take together.
    pub memory_cap: Option<u64>,
    /// Unload what was not asked for in this time.
    pub idle: Option<Duration>,
    /// Layers of each model, the last ones, to compute on a device beside the processor.
    pub gpu_layers: Option<usize>,
    /// At least one.
    pub models: Vec<ModelConfig>,
}

/// One model. What is `None` is as for all.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ModelConfig {
    /// What requests call it; by default the name of its file.
    pub name: Option<String>,
    /// A file, a folder with one, or a name in the model folder; `None` is the built-in model.
    pub model: Option<String>,
    /// A model of the same vocabulary that guesses ahead, named like `model`.
    pub draft: Option<String>,
    /// A file with a chat template in place of its own.
    pub template: Option<String>,
    /// Load it when it is asked for, not at the start.
    pub is_on_demand: bool,
    /// Never unload it to make room or because it idles.
    pub is_pinned: bool,
    /// Tokens of context.
    pub context: Option<usize>,
    /// Tokens that its cache holds.
    pub kv_tokens: Option<usize>,
    /// Answers at once.
    pub parallel: Option<usize>,
    /// Requests that wait.
    pub queue: Option<usize>,
    /// Percent of its own time that an answer may take beside prompts.
    pub pace: Option<usize>,
    /// Storage of keys and values.
    pub kv_type: Option<KvType>,
    /// Rounding of activations.
    pub activations: Option<Activations>,
}

impl Config {
    /// Reads a file.
    ///
    /// # Errors
    /// [`ServerError::File`], with what is wrong and what was expected.
    pub fn of_file(path: &std::path::Path) -> Result<Self, ServerError> {
        let bytes = read(path, "a JSON file that lists models")?;
        Self::parse(&bytes).map_err(|problem| wrong(path, problem.to_string()))
    }

    fn parse(bytes: &[u8]) -> Result<Self, Problem> {
        let mut fields = Fields::new(json::object_of_file(bytes)?);
        let memory_cap = fields.whole("memory_cap_bytes", 1, i64::MAX)?.map(i64::unsigned_abs);
        let idle = fields.whole("idle_seconds", 1, i64::from(u32::MAX))?;
        let gpu_layers = fields.count("gpu_layers", 0, i64::MAX)?;
        let list = match fields.take("models") {
            Some(Json::Array(list)) if !list.is_empty() => list,
            _ => return Err(Invalid::of("models", "is missing or empty, expected an array of models").into()),
        };
        fields.finish()?;
        let models = list.into_iter().enumerate().map(|(place, entry)| model(place, entry));
        let idle = idle.map(|seconds| Duration::from_secs(seconds.unsigned_abs()));
        Ok(Self { memory_cap, idle, gpu_layers, models: models.collect::<Result<_, _>>()? })
    }
}

fn model(place: usize, entry: Json) -> Result<ModelConfig, Problem> {
    let mut fields = Fields::of(format!("models[{place}]"), entry)?;
    let config = ModelConfig {
        name: fields.string("name")?,
        model: fields.string("model")?,
        draft: fields.string("draft")?,
        template: fields.string("template")?,
        is_on_demand: choice(&mut fields, "load", &[("start", false), ("demand", true)])?.unwrap_or(false),
        is_pinned: fields.flag("pinned")?.unwrap_or(false),
        context: fields.count("context", 1, i64::MAX)?,
        kv_tokens: fields.count("kv_tokens", 1, i64::MAX)?,
        parallel: fields.count("parallel", 1, 1024)?,
        queue: fields.count("queue", 1, i64::MAX)?,
        pace: fields.count("pace", 100, 10_000)?,
        kv_type: choice(&mut fields, "kv_type", &[KvType::F16, KvType::Q8_0, KvType::F32].map(|of| (of.name(), of)))?,
        activations: choice(
            &mut fields,
            "activations",
            &[Activations::Auto, Activations::Int8, Activations::Int16].map(|of| (of.name(), of)),
        )?,
    };
    fields.finish()?;
    Ok(config)
}

/// A field that is one of a few names.
fn choice<T: Copy>(fields: &mut Fields, field: &'static str, of: &[(&str, T)]) -> Result<Option<T>, Problem> {
    let Some(found) = fields.string(field)? else { return Ok(None) };
    let names: Vec<&str> = of.iter().map(|(name, _)| *name).collect();
    match of.iter().find(|(name, _)| *name == found) {
        Some((_, value)) => Ok(Some(*value)),
        None => {
            Err(Invalid::of(&fields.name(field), format!("is {found:?}, expected one of {}", names.join(", "))).into())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_are_listed_with_their_settings() {
        let text = r#"{"memory_cap_bytes": 1000, "idle_seconds": 60, "gpu_layers": 7, "models": [
            {"model": "a.gguf"},
            {"name": "b", "model": "folder", "load": "demand", "pinned": true, "context": 512, "kv_type": "q8_0",
             "pace": 300}
        ]}"#;
        let config = Config::parse(text.as_bytes()).unwrap();
        assert_eq!((config.memory_cap, config.idle), (Some(1000), Some(Duration::from_secs(60))));
        assert_eq!(config.gpu_layers, Some(7));
        let [a, b] = &config.models[..] else { panic!("{config:?}") };
        assert_eq!((a.name.as_deref(), a.is_on_demand, a.is_pinned, a.context), (None, false, false, None));
        assert_eq!((b.name.as_deref(), b.is_on_demand, b.is_pinned), (Some("b"), true, true));
        assert_eq!((b.context, b.kv_type, b.pace, a.pace), (Some(512), Some(KvType::Q8_0), Some(300), None));
    }

    #[test]
    fn what_is_wrong_is_told_with_its_field() {
        let message = |text: &str| Config::parse(text.as_bytes()).unwrap_err().to_string();
        assert!(message("{}").starts_with("models is missing or empty"));
        assert_eq!(message(r#"{"models": [{"model": 3}]}"#), "models[0].model is a number, expected a string");
        let kind = message(r#"{"models": [{"model": "a", "kv_type": "f64"}]}"#);
        assert_eq!(kind, "models[0].kv_type is \"f64\", expected one of f16, q8_0, f32");
        assert!(message(r#"{"models": [{"model": "a", "pined": true}]}"#).contains("did you mean pinned?"));
    }
}
