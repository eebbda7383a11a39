//! From a model and a device to text: sampling and stopping as pure state machines, and the session that drives a plan.

mod candidates;
mod dry;
mod error;
mod failover;
#[cfg(all(test, feature = "pocket"))]
mod fake;
mod filters;
mod generate;
pub(crate) mod grammar;
mod guesser;
mod handle;
mod ledger;
mod lookup;
mod metrics;
mod mirostat;
mod models;
mod options;
mod owner;
mod penalties;
mod perplexity;
mod pooling;
mod random;
mod request;
mod sampler;
mod sampling;
mod session;
mod session_file;
mod softmax;
mod stop;
mod stream;

pub use dry::Breakers;
pub use error::EngineError;
pub use failover::{Backends, DeviceState};
pub use generate::{Event, Finish, GenerateOptions, Generated, Timings};
pub use grammar::Grammar;
pub use handle::Engine;
#[cfg(feature = "server")]
pub(crate) use handle::{Form, Held};
pub use ledger::Holdings;
pub use lookup::{MOST_DRAFT, Speculate};
pub use metrics::Metrics;
pub use models::{LoadError, Loaded, Models, ModelsOptions, OpenModel, Opened};
pub use options::EngineOptions;
#[cfg(feature = "server")]
pub(crate) use options::after;
pub use perplexity::{Perplexity, perplexity};
pub use pooling::shortened;
pub use random::{Random, fresh_seed};
pub use request::{MOST_CHOICES, Priority, Refusal, Request};
pub use sampler::{Chosen, Logprobs, SampleError, Sampler};
pub use sampling::{Dry, MOST_LOGPROBS, Mirostat, Sampling, SamplingError, Xtc};
pub use session::{Session, SessionOptions};
pub use session_file::{MOST_NOTE_BYTES, Restored, SessionFileError};
pub use stop::StopMatcher;
pub use stream::{Stream, StreamEvent};
