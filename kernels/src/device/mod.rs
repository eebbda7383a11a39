//! What backends whose memory is their own have in common: how weights lie there, which ops run as one, where the values
//! of a step are, whose pages hold which keys and values.

pub(crate) mod answers;
#[cfg(feature = "cuda")]
pub(crate) mod fuse;
pub(crate) mod known_answers;
pub(crate) mod layout;
pub(crate) mod pages;
#[cfg(feature = "cuda")]
pub(crate) mod places;
