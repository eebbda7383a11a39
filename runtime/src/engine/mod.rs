//! From a model and a device to text: sampling and stopping as pure state machines, and the session that drives a plan.

mod candidates;
mod dry;
mod filters;
mod mirostat;
mod penalties;
mod random;
mod sampler;
mod sampling;
mod softmax;
mod stop;

pub use dry::Breakers;
pub use random::fresh_seed;
pub use sampler::{Chosen, Logprobs, SampleError, Sampler};
pub use sampling::{Dry, MOST_LOGPROBS, Mirostat, Sampling, SamplingError, Xtc};
pub use stop::StopMatcher;
