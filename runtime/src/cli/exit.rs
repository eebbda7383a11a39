//! How the program ends: exit codes, and the one line of error with its hint.
//!
//! The codes are stable and part of the manual: scripts and service managers act on them.

use std::fmt::Display;
use std::process::ExitCode;

use farpost::LibraryError;
use farpost::ModelError;
use farpost::engine::{EngineError, SamplingError, SessionFileError};
use farpost_kernels::backend::DeviceError;
use farpost_models::families::FamilyError;
use farpost_models::gguf::GgufError;
use farpost_models::pack::PackError;
use farpost_models::quantize::QuantizeError;
use farpost_models::template::TemplateError;
use farpost_models::tokenizer::TokenizerError;

use super::console::Console;

/// What an exit code means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    Done,
    Failed,
    Usage,
    Model,
    Memory,
    Device,
    Unreachable,
    Interrupted,
}

/// Every code with its meaning, as the manual lists them.
const MEANINGS: [(Exit, &str); 8] = [
    (Exit::Done, "done"),
    (Exit::Failed, "failed while running"),
    (Exit::Usage, "wrong usage"),
    (Exit::Model, "model file missing, damaged or not supported"),
    (Exit::Memory, "not enough memory or threads, or more memory than the cap allows"),
    (Exit::Device, "a device that was required is not there"),
    (Exit::Unreachable, "cloud or server not reachable"),
    (Exit::Interrupted, "interrupted"),
];

impl Exit {
    /// The number.
    pub const fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Failed => 1,
            Self::Usage => 2,
            Self::Model => 3,
            Self::Memory => 4,
            Self::Device => 5,
            Self::Unreachable => 6,
            Self::Interrupted => 130,
        }
    }
}

/// Every code with its meaning, for the manual.
pub fn codes() -> impl Iterator<Item = (u8, &'static str)> {
    MEANINGS.into_iter().map(|(exit, meaning)| (exit.code(), meaning))
}

/// The same as text, for the help.
pub fn long_help() -> String {
    let lines: Vec<String> = codes().map(|(code, meaning)| format!("  {code:<4} {meaning}")).collect();
    format!("Exit codes:\n{}", lines.join("\n"))
}

/// Why a command did not do what was asked.
#[derive(Debug)]
pub struct Failure {
    exit: Exit,
    /// Empty where nothing needs to be said.
    message: String,
    hint: Option<String>,
}

impl Failure {
    /// A failure with a message of its own: lower case, no full stop.
    pub fn new(exit: Exit, message: impl Display) -> Self {
        Self { exit, message: message.to_string(), hint: None }
    }

    /// Wrong usage that only shows after the command line was parsed.
    pub fn usage(message: impl Display) -> Self {
        Self::new(Exit::Usage, message)
    }

    /// Something the operating system refused while running.
    pub fn system(action: &str, error: &std::io::Error) -> Self {
        Self::new(Exit::Failed, format_args!("cannot {action}: {error}"))
    }

    /// A file, other than the model, that could not be read or written.
    pub fn file(path: &std::path::Path, action: &str, error: &std::io::Error) -> Self {
        Self::new(Exit::Failed, format_args!("{}: cannot {action}: {error}", path.display()))
    }

    /// The user pressed Ctrl-C.
    pub fn interrupted() -> Self {
        Self::new(Exit::Interrupted, "")
    }

    /// Standard output takes no more. That its reader left is no error: it had enough.
    pub fn output(error: &std::io::Error) -> Self {
        if error.kind() == std::io::ErrorKind::BrokenPipe {
            return Self::new(Exit::Done, "");
        }
        Self::system("write to standard output", error)
    }

    /// The same with what to do about it.
    #[must_use]
    pub fn hint(mut self, hint: impl Display) -> Self {
        self.hint = Some(hint.to_string());
        self
    }

    /// The same with the place that led to it.
    #[cfg(feature = "server")]
    #[must_use]
    pub fn within(mut self, place: impl Display) -> Self {
        self.message = format!("{place}: {}", self.message);
        self
    }

    /// The message, and what to do about it.
    pub fn words(&self) -> (&str, Option<&str>) {
        (&self.message, self.hint.as_deref())
    }

    /// The same with another exit code.
    #[must_use]
    pub fn with_exit(mut self, exit: Exit) -> Self {
        self.exit = exit;
        self
    }
}

impl From<GgufError> for Failure {
    fn from(error: GgufError) -> Self {
        let exit = match &error {
            GgufError::OutOfMemory { .. } => Exit::Memory,
            GgufError::Io { source, .. } if source.kind() == std::io::ErrorKind::OutOfMemory => Exit::Memory,
            GgufError::Io { .. } | GgufError::Defect { .. } | GgufError::MissingKey { .. } => Exit::Model,
            GgufError::Changed { .. } | GgufError::Unwritable { .. } => Exit::Failed,
        };
        Self::new(exit, error)
    }
}

impl From<TokenizerError> for Failure {
    fn from(error: TokenizerError) -> Self {
        match error {
            TokenizerError::Metadata(error) => error.into(),
            _ => Self::new(Exit::Model, error),
        }
    }
}

impl From<TemplateError> for Failure {
    fn from(error: TemplateError) -> Self {
        let exit = match &error {
            TemplateError::Metadata(_) | TemplateError::Syntax { .. } | TemplateError::Unusable { .. } => Exit::Model,
            _ => Exit::Failed,
        };
        Self::new(exit, error)
    }
}

impl From<QuantizeError> for Failure {
    fn from(error: QuantizeError) -> Self {
        match error {
            QuantizeError::Stopped { .. } => Self::interrupted(),
            QuantizeError::UnknownMixture { .. } | QuantizeError::OntoInput { .. } => Self::usage(error),
            QuantizeError::Gguf(error) => error.into(),
            QuantizeError::Tensor { .. } | QuantizeError::TooLarge { .. } => Self::new(Exit::Model, error),
        }
    }
}

impl From<PackError> for Failure {
    fn from(error: PackError) -> Self {
        match error {
            PackError::Stopped { .. } => Self::interrupted(),
            PackError::NoOrder { .. } | PackError::NoFile { .. } | PackError::OntoModel { .. } => Self::usage(error),
            PackError::Gguf(error) => error.into(),
            PackError::Stale { .. } => Self::new(Exit::Failed, error).hint("'farpost pack' makes it anew"),
            _ => Self::new(Exit::Failed, error),
        }
    }
}

impl From<LibraryError> for Failure {
    fn from(error: LibraryError) -> Self {
        let is_unknown = matches!(error, LibraryError::NotFound { .. });
        let failure = Self::new(Exit::Model, error);
        if is_unknown { failure.hint("'farpost doctor' lists the models in the model folder") } else { failure }
    }
}

impl From<ModelError> for Failure {
    fn from(error: ModelError) -> Self {
        match error {
            ModelError::File(error) => error.into(),
            ModelError::Tokenizer(error) => error.into(),
            ModelError::Family(FamilyError::Metadata(error)) => error.into(),
            ModelError::Family(FamilyError::Context { .. }) => Self::usage(error),
            _ => Self::new(Exit::Model, error),
        }
    }
}

/// Names the option where the engine names the parameter; they differ in their dashes only.
impl From<SamplingError> for Failure {
    fn from(error: SamplingError) -> Self {
        let option = |parameter: &str| format!("--{}", parameter.replace('_', "-"));
        Self::usage(match &error {
            SamplingError::OutOfRange { parameter, found, expected } => {
                format!("{} is {found}, expected {expected}", option(parameter))
            }
            SamplingError::NoSuchToken { id, n_vocab } => {
                format!("{} names token {id}, the model has {n_vocab}", option("logit_bias"))
            }
        })
    }
}

impl From<EngineError> for Failure {
    fn from(error: EngineError) -> Self {
        let error = match error {
            EngineError::Sampling(error) => return error.into(),
            other => other,
        };
        let exit = match &error {
            EngineError::Device(DeviceError::OutOfMemory { .. } | DeviceError::NoThreads { .. })
            | EngineError::NoRoom { .. } => Exit::Memory,
            EngineError::Device(DeviceError::Absent(_)) => Exit::Device,
            EngineError::Device(_)
            | EngineError::Sample(_)
            | EngineError::Damaged { .. }
            | EngineError::Changed(_)
            | EngineError::Gone => Exit::Failed,
            EngineError::Sampling(_)
            | EngineError::OutOfRange { .. }
            | EngineError::EmptyStop { .. }
            | EngineError::Grammar { .. }
            | EngineError::DraftModel { .. }
            | EngineError::NoDraftModel
            | EngineError::EmptyPrompt
            | EngineError::PromptTooLong { .. }
            | EngineError::NoSuchToken { .. }
            | EngineError::NoEmbeddings { .. }
            | EngineError::TextTooShort { .. } => Exit::Usage,
        };
        let hint = match &error {
            EngineError::PromptTooLong { .. } => Some("--context gives it more room"),
            EngineError::Device(DeviceError::OutOfMemory { .. }) => {
                Some("a smaller --context, --kv-type q8_0 or a larger --memory-cap")
            }
            EngineError::Device(DeviceError::NoThreads { .. }) => Some("fewer --threads, or a higher limit for them"),
            _ => None,
        };
        let failure = Self::new(exit, error);
        match hint {
            Some(hint) => failure.hint(hint),
            None => failure,
        }
    }
}

impl From<SessionFileError> for Failure {
    fn from(error: SessionFileError) -> Self {
        let exit = match error {
            SessionFileError::Model(error) => return error.into(),
            SessionFileError::OutOfMemory { .. } | SessionFileError::NoRoom { .. } => Exit::Memory,
            SessionFileError::Foreign { .. } | SessionFileError::TooLong { .. } => Exit::Usage,
            _ => Exit::Failed,
        };
        Self::new(exit, error)
    }
}

/// Prints the error, if there is one to print, and gives the exit code.
pub fn report(result: Result<(), Failure>, console: &Console) -> ExitCode {
    let Err(failure) = result else { return ExitCode::SUCCESS };
    if !failure.message.is_empty() {
        console.complain_of(&failure);
    }
    ExitCode::from(failure.exit.code())
}
