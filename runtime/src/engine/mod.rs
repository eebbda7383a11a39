//! From a model and a device to text: sampling and stopping as pure state machines, and the session that drives a plan.

mod candidates;
mod dry;
mod error;
mod filters;
mod generate;
mod lookup;
mod mirostat;
mod penalties;
mod perplexity;
mod random;
mod sampler;
mod sampling;
mod session;
mod softmax;
mod stop;

pub use dry::Breakers;
pub use error::EngineError;
pub use generate::{Event, Finish, GenerateOptions, Generated, Timings};
pub use lookup::{MOST_DRAFT, Speculate};
pub use perplexity::{Perplexity, perplexity};
pub use random::fresh_seed;
pub use sampler::{Chosen, Logprobs, SampleError, Sampler};
pub use sampling::{Dry, MOST_LOGPROBS, Mirostat, Sampling, SamplingError, Xtc};
pub use session::{Session, SessionOptions};
pub use stop::StopMatcher;
