//! Why a request is not served, in no protocol's words: the wire layer puts it into its own.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use farpost_kernels::backend::DeviceError;

use super::catalogue::PAUSE;
use crate::engine::{EngineError, Finish, Refusal, SampleError, SamplingError};

/// The code of heads after which nothing on the connection can be relied on.
pub(super) const MALFORMED_HEAD: &str = "malformed_head";

/// A request that is wrong in itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Invalid {
    /// The parameter that is wrong, if it is one.
    pub(super) param: Option<String>,
    pub(super) code: Option<&'static str>,
    pub(super) message: String,
}

impl Invalid {
    /// A parameter with a wrong value; the message says what is wrong, without naming it.
    pub(super) fn of(param: &str, message: impl std::fmt::Display) -> Self {
        Self { param: Some(param.to_owned()), code: None, message: format!("{param} {message}") }
    }

    /// A parameter of the protocol that is not supported.
    pub(super) fn unsupported(param: &str, message: String) -> Self {
        Self { code: Some("unsupported_parameter"), ..Self::of(param, message) }
    }

    /// A form that can't be enforced.
    pub(super) fn schema(param: String, reason: impl fmt::Display) -> Self {
        Self { code: Some("unsupported_schema"), message: format!("{param}: {reason}"), param: Some(param) }
    }

    /// A parameter that is not of the protocol.
    pub(super) fn unknown(param: &str, message: String) -> Self {
        Self { code: Some("unknown_parameter"), ..Self::of(param, message) }
    }

    /// The head of a request that came to a handler.
    pub(super) fn head(message: String) -> Self {
        Self { param: None, code: Some(MALFORMED_HEAD), message }
    }

    /// The body as a whole.
    pub(super) fn body(message: String) -> Self {
        Self { param: None, code: None, message }
    }
}

/// Why a request is not served.
#[derive(Clone, Debug)]
pub(super) enum Problem {
    Invalid(Invalid),
    ContextLength {
        /// The parameter that is to become shorter.
        param: &'static str,
        prompt_tokens: usize,
        /// The prompt is known to have more than that; how many was not counted.
        is_least: bool,
        max_tokens: Option<usize>,
        context_tokens: usize,
    },
    NoKey,
    WrongKey,
    ExpiredKey,
    /// The key may not do this.
    Scope(&'static str),
    /// A Host or Origin that is not ours.
    Host(String),
    Origin(String),
    NoModel(String),
    NoRoute(String),
    Method(String),
    /// The head of a request; it never came to a handler.
    Head {
        status: u16,
    },
    BodyTimeout,
    TooLarge {
        most_bytes: usize,
    },
    MediaType(String),
    /// A body that is compressed.
    Encoding(String),
    /// Too many connections from one address.
    TooManyConnections,
    QueueFull {
        waiting: usize,
        retry_after: Duration,
    },
    /// A limit of the key that is soon there again.
    Rate {
        what: &'static str,
        limit: u64,
        retry_after: Duration,
    },
    /// The tokens that the key may use in a day.
    Quota {
        limit: u64,
        retry_after: Duration,
    },
    Superseded,
    /// The model is on its way.
    Loading {
        retry_after: Duration,
    },
    Draining,
    /// It would take longer than its deadline.
    Unreachable {
        deadline: Duration,
        estimate: Duration,
        /// `None` where waiting is of no use.
        retry_after: Option<Duration>,
    },
    /// The deadline passed, with so many tokens written.
    Deadline {
        completion_tokens: usize,
    },
    /// More memory than there is; never, or not now: `retry_after` tells them apart.
    Memory {
        needed_bytes: u64,
        allowed_bytes: u64,
        retry_after: Option<Duration>,
    },
    /// The system starts no more threads now.
    NoThreads,
    /// The model does not fit beside those that may not give way. Like all problems it names no model but one that was asked for
    /// by its name: others may not be known to who is told.
    ModelMemory {
        needed_bytes: u64,
        allowed_bytes: u64,
        retry_after: Option<Duration>,
    },
    /// The model can't be loaded; why is for who runs the server.
    ModelFailed {
        cause: Arc<str>,
        is_told: bool,
    },
    /// Something broke; what exactly stands in the log.
    Internal(Arc<str>),
}

impl Problem {
    /// The HTTP status that all protocols share.
    pub(super) fn status(&self) -> u16 {
        match self {
            Self::Invalid(_) | Self::ContextLength { .. } => 400,
            Self::NoKey | Self::WrongKey | Self::ExpiredKey => 401,
            Self::Scope(_) | Self::Host(_) | Self::Origin(_) => 403,
            Self::NoModel(_) | Self::NoRoute(_) => 404,
            Self::Method(_) => 405,
            Self::Head { status } => *status,
            Self::BodyTimeout => 408,
            Self::Superseded => 409,
            Self::TooLarge { .. } => 413,
            Self::MediaType(_) | Self::Encoding(_) => 415,
            Self::QueueFull { .. } | Self::Rate { .. } | Self::Quota { .. } => 429,
            Self::Internal(_) => 500,
            Self::Loading { .. }
            | Self::Draining
            | Self::Unreachable { .. }
            | Self::ModelFailed { .. }
            | Self::TooManyConnections
            | Self::NoThreads
            | Self::Memory { retry_after: Some(_), .. }
            | Self::ModelMemory { retry_after: Some(_), .. } => 503,
            Self::Deadline { .. } => 504,
            Self::Memory { .. } | Self::ModelMemory { .. } => 507,
        }
    }

    /// What machines call it.
    pub(super) fn code(&self) -> Option<&'static str> {
        Some(match self {
            Self::Invalid(invalid) => return invalid.code,
            Self::ContextLength { .. } => "context_length_exceeded",
            Self::NoKey | Self::WrongKey | Self::ExpiredKey => "invalid_api_key",
            Self::Scope(_) => "missing_scope",
            Self::Host(_) => "host_refused",
            Self::Origin(_) => "origin_refused",
            Self::NoModel(_) => "model_not_found",
            Self::NoRoute(_) => "unknown_url",
            Self::Method(_) => "method_not_allowed",
            Self::Head { status: 414 } => "uri_too_long",
            Self::Head { status: 431 } => "head_too_large",
            Self::Head { status: 408 } => "request_timeout",
            Self::Head { .. } => MALFORMED_HEAD,
            Self::BodyTimeout => "request_timeout",
            Self::TooLarge { .. } => "request_too_large",
            Self::MediaType(_) | Self::Encoding(_) => "unsupported_media_type",
            Self::TooManyConnections => "too_many_connections",
            Self::QueueFull { .. } => "queue_full",
            Self::Rate { .. } => "rate_limit_exceeded",
            Self::Quota { .. } => "quota_exceeded",
            Self::Superseded => "superseded",
            Self::Loading { .. } => "model_loading",
            Self::Draining => "draining",
            Self::Unreachable { .. } => "deadline_unreachable",
            Self::Deadline { .. } => "deadline_exceeded",
            Self::NoThreads | Self::Memory { .. } | Self::ModelMemory { .. } => "insufficient_memory",
            Self::ModelFailed { .. } => "model_failed",
            Self::Internal(_) => "internal_error",
        })
    }

    /// The parameter to blame.
    pub(super) fn param(&self) -> Option<&str> {
        match self {
            Self::Invalid(invalid) => invalid.param.as_deref(),
            Self::NoModel(_) | Self::ModelMemory { .. } | Self::ModelFailed { .. } => Some("model"),
            Self::ContextLength { param, .. } => Some(param),
            _ => None,
        }
    }

    /// Whole seconds after which to try again, at least one.
    pub(super) fn retry_after(&self) -> Option<u64> {
        match self {
            Self::QueueFull { retry_after, .. }
            | Self::Rate { retry_after, .. }
            | Self::Quota { retry_after, .. }
            | Self::Loading { retry_after }
            | Self::Unreachable { retry_after: Some(retry_after), .. }
            | Self::Memory { retry_after: Some(retry_after), .. }
            | Self::ModelMemory { retry_after: Some(retry_after), .. } => {
                Some(retry_after.as_secs_f64().ceil().max(1.0) as u64)
            }
            Self::Draining | Self::TooManyConnections | Self::NoThreads => Some(1),
            Self::ModelFailed { .. } => Some(PAUSE.as_secs()),
            _ => None,
        }
    }

    /// The name under which refusals are counted and logged.
    pub(super) fn reason(&self) -> &'static str {
        self.code().unwrap_or("invalid_request")
    }

    /// Why an answer ended that nobody wanted to end so, with so many tokens written; `None` if it ended well.
    pub(super) fn of_finish(finish: Finish, completion_tokens: usize) -> Option<Self> {
        match finish {
            Finish::EndToken(_) | Finish::StopString(_) | Finish::Length => None,
            Finish::Superseded => Some(Self::Superseded),
            Finish::Deadline => Some(Self::Deadline { completion_tokens }),
            Finish::Closed => Some(Self::Draining),
            Finish::Cancelled => Some(Self::Internal("the request was cancelled".into())),
        }
    }

    /// What an engine fails with.
    pub(super) fn of_engine(error: &EngineError) -> Self {
        let invalid = |param: &str, message: String| {
            Self::Invalid(Invalid { param: Some(param.to_owned()), code: None, message })
        };
        match error {
            EngineError::PromptTooLong { prompt_tokens, context_tokens } => Self::ContextLength {
                param: "prompt",
                prompt_tokens: *prompt_tokens,
                is_least: false,
                max_tokens: None,
                context_tokens: *context_tokens,
            },
            EngineError::Sampling(SamplingError::OutOfRange { parameter, .. })
            | EngineError::OutOfRange { parameter, .. } => invalid(parameter, error.to_string()),
            EngineError::Sampling(SamplingError::NoSuchToken { .. }) => invalid("logit_bias", error.to_string()),
            EngineError::EmptyStop { .. } => invalid("stop", error.to_string()),
            EngineError::Grammar { form, pointer, reason } => {
                let field = match *form {
                    "json_schema" => "response_format.json_schema.schema",
                    "json_object" => "response_format",
                    other => other,
                };
                Self::Invalid(Invalid::schema(format!("{field}{pointer}"), reason))
            }
            EngineError::Sample(SampleError::Constraint { .. }) => {
                Self::Invalid(Invalid { param: None, code: Some("unsupported_schema"), message: error.to_string() })
            }
            EngineError::NoEmbeddings { .. } => invalid("model", error.to_string()),
            // Nothing is wrong with it; what is lacking is room for a stack.
            EngineError::Device(DeviceError::NoThreads { .. }) => Self::NoThreads,
            EngineError::EmptyPrompt | EngineError::NoSuchToken { .. } => invalid("prompt", error.to_string()),
            _ => Self::Internal(error.to_string().into()),
        }
    }
}

impl From<Invalid> for Problem {
    fn from(invalid: Invalid) -> Self {
        Self::Invalid(invalid)
    }
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::QueueFull { waiting, retry_after } => Self::QueueFull { waiting, retry_after },
            Refusal::Deadline { deadline, estimate, retry_after } => {
                Self::Unreachable { deadline, estimate, retry_after }
            }
            Refusal::Memory { needed_bytes, allowed_bytes, retry_after, .. } => {
                Self::Memory { needed_bytes, allowed_bytes, retry_after }
            }
            Refusal::Invalid(error) => Self::of_engine(&error),
            Refusal::Closed => Self::Draining,
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Invalid(invalid) => f.write_str(&invalid.message),
            Self::ContextLength { prompt_tokens, is_least, max_tokens, context_tokens, .. } => {
                let least = if *is_least { " at least" } else { "" };
                write!(f, "the prompt has{least} {prompt_tokens} tokens")?;
                if let Some(max_tokens) = max_tokens {
                    write!(f, " and {max_tokens} more are asked for")?;
                }
                write!(f, ", the context holds {context_tokens}")
            }
            Self::NoKey => f.write_str("no API key was given, expected 'Authorization: Bearer KEY'"),
            Self::WrongKey => f.write_str("the API key is not known here"),
            Self::ExpiredKey => f.write_str("the API key has expired"),
            Self::Scope(scope) => write!(f, "the API key lacks the scope '{scope}'"),
            Self::Host(host) => write!(f, "the Host header is {host:?}, which is no name of this server"),
            Self::Origin(origin) => write!(f, "pages of {origin:?} may not ask this server"),
            Self::NoModel(model) => write!(f, "there is no model {model:?} here"),
            Self::NoRoute(path) => write!(f, "there is nothing at {path:?}"),
            Self::Method(method) => write!(f, "the method {method} is not allowed here"),
            Self::Head { status: 414 } => f.write_str("the address of the request is too long"),
            Self::Head { status: 431 } => f.write_str("the head of the request is too large or has too many fields"),
            Self::Head { status: 408 } => f.write_str("the head of the request did not come in time"),
            Self::Head { .. } => f.write_str(
                "the head of the request is malformed, expected HTTP/1.1 with one length of the body at most",
            ),
            Self::BodyTimeout => f.write_str("the body of the request did not come in time"),
            Self::TooLarge { most_bytes } => write!(f, "the body is larger than {most_bytes} bytes"),
            Self::MediaType(found) => write!(f, "the content type is {found:?}, expected application/json"),
            Self::Encoding(found) => write!(f, "the body is encoded as {found:?}, expected it as it is"),
            Self::TooManyConnections => f.write_str("there are too many connections from this address"),
            Self::QueueFull { waiting, .. } => write!(f, "the queue is full with {waiting} requests"),
            Self::Rate { what, limit, .. } => write!(f, "the API key is limited to {limit} {what}, which are used up"),
            Self::Quota { limit, .. } => {
                write!(f, "the API key is limited to {limit} tokens per day, which are used up")
            }
            Self::Superseded => f.write_str("a newer request with the same supersede_key took its place"),
            Self::Loading { .. } => f.write_str("the model is being loaded"),
            Self::Draining => f.write_str("the server is shutting down"),
            Self::Unreachable { deadline, estimate, .. } => write!(
                f,
                "the deadline is in {} ms, the answer would take {} ms",
                deadline.as_millis(),
                estimate.as_millis()
            ),
            Self::Deadline { completion_tokens } => {
                write!(f, "the deadline passed before the answer was complete, {completion_tokens} tokens were written")
            }
            Self::NoThreads => f.write_str("the system has no room for another thread now"),
            Self::Memory { needed_bytes, allowed_bytes, retry_after: None } => {
                write!(f, "the request needs {needed_bytes} bytes of memory, {allowed_bytes} are allowed")
            }
            Self::Memory { needed_bytes, allowed_bytes, retry_after: Some(_) } => {
                write!(f, "the request needs {needed_bytes} bytes of memory, {allowed_bytes} are free now")
            }
            Self::ModelMemory { needed_bytes, allowed_bytes, .. } => {
                write!(f, "the model needs {needed_bytes} bytes of memory beside its file, {allowed_bytes} can be had")
            }
            Self::ModelFailed { cause, is_told: true } => write!(f, "the model can't be loaded: {cause}"),
            Self::ModelFailed { .. } => {
                f.write_str("the model can't be loaded; the log and the admin routes have the cause")
            }
            Self::Internal(_) => {
                f.write_str("something failed in the server; its log has the request id and the cause")
            }
        }
    }
}
