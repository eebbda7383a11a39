//! A model: an opened file with its tokenizer, chat template and graph. Knows no device.

use std::fmt;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Instant;

use farpost_kernels::backend::DeviceError;
use farpost_kernels::cpu::isa::Isa;
use farpost_kernels::graph::Graph;
use farpost_models::families::{self, Built, Config, FamilyError, Pooling};
use farpost_models::gguf::{Access, ContentHash, File, GgufError, Place, ReadAhead};
use farpost_models::pack::{self, PackError, Packed};
use farpost_models::template::{ChatTemplate, TemplateError};
use farpost_models::tokenizer::{Tokenizer, TokenizerError};

use crate::engine::grammar::Vocabulary;

/// Choices made when a model is opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ModelOptions {
    /// Most positions a session of it may have; by default what the model was trained for. Models with two sets of
    /// rotary factors choose by it.
    pub context: Option<usize>,
    /// Map the file or copy it into memory.
    pub access: Access,
    /// Read the weights from the packed file for this processor class, where one lies beside the model and fits.
    pub pack_for: Option<Isa>,
    /// Where the files are not in the system's cache and take no more bytes than this, a thread reads them in one go
    /// while the model is already used; it ends with the model at the latest. `None` reads what is used when it is used.
    pub read_ahead_bytes: Option<u64>,
}

/// What became of a model's packed file.
#[derive(Debug)]
pub enum PackUse {
    /// None was asked for, there are none for the class, or the model was copied into memory.
    NotAsked,
    /// There is no file at this path.
    Absent(PathBuf),
    /// There is one that does not fit: the weights are read from the model.
    Unused(PackError),
    /// Weights are read from it.
    Used(Packed),
}

/// Why a file is no model that can be used.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// The file.
    #[error(transparent)]
    File(#[from] GgufError),
    /// Its vocabulary.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// Its architecture.
    #[error(transparent)]
    Family(#[from] FamilyError),
    /// A chat template that is to be used in place of its own.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// Vocabulary and weights do not belong together.
    #[error("{place}: the vocabulary has {n_tokens} tokens, expected no more than the {n_logits} logits of the output")]
    Vocabulary {
        /// Where the vocabulary stands.
        place: Place,
        /// Tokens in the vocabulary.
        n_tokens: usize,
        /// Rows of the output matrix.
        n_logits: usize,
    },
}

/// A model that can be given to a device. Nothing in it changes: share it in an [`std::sync::Arc`].
pub struct Model {
    file: File,
    tokenizer: Tokenizer,
    template: Result<ChatTemplate, TemplateError>,
    built: Built,
    packed: PackUse,
    /// Held to be ended.
    _ahead: Option<ReadAhead>,
    /// Made when a text must have a form for the first time.
    vocabulary: OnceLock<Option<Vocabulary>>,
    /// Made when it is asked for the first time.
    content_hash: OnceLock<ContentHash>,
    open_ms: f64,
}

impl Model {
    /// Opens the file at `path`, or the split model of which it is a part.
    pub fn open(path: &Path, options: &ModelOptions) -> Result<Self, ModelError> {
        let start = Instant::now();
        let file = File::open_with(path, options.access)?;
        Self::new(file, options, start)
    }

    /// A model from an opened file.
    pub fn from_file(file: File, options: &ModelOptions) -> Result<Self, ModelError> {
        Self::new(file, options, Instant::now())
    }

    /// The model built into the program.
    #[cfg(feature = "pocket")]
    pub fn pocket() -> Result<Self, ModelError> {
        Self::from_file(farpost_models::pocket::file(), &ModelOptions::default())
    }

    /// Whether `file` is a model that can be opened, without opening it.
    ///
    /// # Errors
    /// Those of [`Model::from_file`].
    pub fn check(file: &File, options: &ModelOptions) -> Result<(), ModelError> {
        let built = families::build(file, &families::Options { context: options.context })?;
        tokenizer(file, &built).map(|_| ())
    }

    fn new(file: File, options: &ModelOptions, start: Instant) -> Result<Self, ModelError> {
        let mut built = families::build(&file, &families::Options { context: options.context })?;
        let packed = packed(&file, &mut built.graph, options);
        let weights = match &packed {
            PackUse::Used(packed) => packed.file(),
            _ => &file,
        };
        // Before the vocabulary, which takes its time.
        let ahead = options.read_ahead_bytes.and_then(|most| weights.read_ahead(most));
        let tokenizer = tokenizer(&file, &built)?;
        let template = ChatTemplate::from_metadata(file.metadata(), &tokenizer);
        let open_ms = start.elapsed().as_secs_f64() * 1e3;
        let (vocabulary, content_hash) = (OnceLock::new(), OnceLock::new());
        Ok(Self { file, tokenizer, template, built, packed, _ahead: ahead, vocabulary, content_hash, open_ms })
    }

    /// What messages call it: the file as it was named.
    pub fn name(&self) -> &str {
        self.file.name()
    }

    /// The file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Text to ids and back.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// The chat template; `None` if the file brings none that can be used.
    pub fn template(&self) -> Option<&ChatTemplate> {
        self.template.as_ref().ok()
    }

    /// The same model with this chat template in place of its own.
    ///
    /// # Errors
    /// [`ModelError::Template`].
    pub fn with_template(mut self, source: &str) -> Result<Self, ModelError> {
        self.template = Ok(ChatTemplate::for_tokenizer(source, &self.tokenizer)?);
        Ok(self)
    }

    /// As [`Model::template`], with the reason if there is none: raw text can be completed all the same.
    pub fn require_template(&self) -> Result<&ChatTemplate, &TemplateError> {
        self.template.as_ref()
    }

    /// One step of the model.
    pub fn graph(&self) -> &Graph {
        &self.built.graph
    }

    /// What the file says of the model.
    pub fn config(&self) -> &Config {
        &self.built.config
    }

    /// How its rows become the embedding of a text; `None` for models that write.
    pub fn pooling(&self) -> Option<Pooling> {
        self.built.config.pooling
    }

    /// What became of the packed file.
    pub fn packed(&self) -> &PackUse {
        &self.packed
    }

    /// The files it lies in: its own, and the packed one where that is used.
    pub fn files(&self) -> impl Iterator<Item = &File> {
        let packed = match &self.packed {
            PackUse::Used(packed) => Some(packed.file()),
            _ => None,
        };
        std::iter::once(&self.file).chain(packed)
    }

    /// The tokens arranged for parsing; `None` if no token ends a text.
    pub(crate) fn vocabulary(&self) -> Option<&Vocabulary> {
        self.vocabulary.get_or_init(|| Vocabulary::new(&self.tokenizer)).as_ref()
    }

    /// An error of the device with what it may be due to: wrong results come of a damaged packed file too.
    pub(crate) fn explained(&self, error: DeviceError) -> DeviceError {
        match (error, &self.packed) {
            (DeviceError::Wrong(reason), PackUse::Used(packed)) => DeviceError::Wrong(format!(
                "{reason}; the weights are those of {}, 'farpost pack --check' tells whether they are damaged",
                packed.path().display()
            )),
            (error, _) => error,
        }
    }

    /// SHA-256 of the model's file. The first call reads all of it; later ones only look whether it is still the same.
    ///
    /// # Errors
    /// A file that changed since it was opened.
    pub fn content_hash(&self) -> Result<ContentHash, GgufError> {
        let hash = self.content_hash_with(&mut |_, _| ControlFlow::Continue(()))?;
        Ok(hash.expect("nobody breaks off"))
    }

    /// As [`Model::content_hash`], telling `progress` the bytes read and the bytes in all; `None` if it breaks off.
    ///
    /// # Errors
    /// As [`Model::content_hash`].
    pub fn content_hash_with(
        &self,
        progress: &mut dyn FnMut(u64, u64) -> ControlFlow<()>,
    ) -> Result<Option<ContentHash>, GgufError> {
        if let Some(known) = self.content_hash.get() {
            self.file.check_unchanged()?;
            return Ok(Some(*known));
        }
        let hash = self.file.content_hash_with(progress)?;
        Ok(hash.map(|hash| *self.content_hash.get_or_init(|| hash)))
    }

    /// How long opening took, in milliseconds.
    pub fn open_ms(&self) -> f64 {
        self.open_ms
    }
}

/// The tokenizer, checked to belong to the weights.
fn tokenizer(file: &File, built: &Built) -> Result<Tokenizer, ModelError> {
    let tokenizer = Tokenizer::from_metadata(file.metadata())?;
    let (n_tokens, n_logits) = (tokenizer.n_vocab(), built.graph.n_vocab());
    if n_tokens > n_logits {
        return Err(ModelError::Vocabulary {
            place: file.metadata().place("tokenizer.ggml.tokens"),
            n_tokens,
            n_logits,
        });
    }
    Ok(tokenizer)
}

/// Puts the weights of the packed file, if it fits, in the place of the model's.
fn packed(file: &File, graph: &mut Graph, options: &ModelOptions) -> PackUse {
    let class = options.pack_for.filter(|&isa| options.access == Access::Map && pack::is_for(isa));
    let Some((isa, path)) = class.and_then(|isa| Some((isa, pack::path_for(file, isa)?))) else {
        return PackUse::NotAsked;
    };
    if !path.exists() {
        return PackUse::Absent(path);
    }
    pack::open(&path, file, graph, isa).map_or_else(PackUse::Unused, PackUse::Used)
}

impl fmt::Debug for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Model({}, {})", self.name(), self.config().architecture)
    }
}

#[cfg(all(test, feature = "pocket"))]
mod tests {
    use super::*;
    use farpost_firmware_tests::{golden, model};

    #[test]
    fn the_pocket_model_opens_with_all_its_parts() {
        let model = Model::pocket().unwrap();
        assert_eq!(model.name(), farpost_models::pocket::NAME);
        assert!(model.template().is_some());
        assert_eq!(model.graph().n_vocab(), model.tokenizer().n_vocab());
        assert_eq!(model.config().architecture, "llama");
    }

    #[test]
    fn a_missing_chat_template_is_told_when_it_is_asked_for() {
        let model = Model::open(&model("tiny-qwen2.gguf"), &ModelOptions::default()).unwrap();
        assert!(model.template().is_none());
        let error = model.require_template().unwrap_err().to_string();
        assert!(error.contains("there is no chat template"), "{error}");
    }

    #[test]
    fn the_context_asked_for_is_the_graphs() {
        let options = ModelOptions { context: Some(77), access: Access::Copy, ..ModelOptions::default() };
        let model = Model::open(&model("tiny-llama.gguf"), &options).unwrap();
        assert_eq!(model.graph().max_context(), 77);
    }

    #[test]
    fn a_vocabulary_alone_is_no_model() {
        let error = Model::open(&golden("vocab/gpt-2.gguf"), &ModelOptions::default()).unwrap_err();
        assert!(matches!(error, ModelError::Family(_)), "{error}");
    }
}
