//! What backends whose memory is their own have in common: how weights lie there, which ops run as one, where the values
//! of a step are.

pub(crate) mod fuse;
pub(crate) mod layout;
pub(crate) mod places;
