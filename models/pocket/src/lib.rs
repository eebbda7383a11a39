//! Generator, training and evaluation of the pocket model (`POCKET.md`).

pub mod answer;
pub mod call;
pub mod corpus;
pub mod export;
pub mod model;
pub mod names;
pub mod rng;
pub mod spoken;
pub mod template;
pub mod train;
pub mod vocabulary;
