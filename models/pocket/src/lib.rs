//! Generator, training and evaluation of the pocket model (`POCKET.md`).

pub mod answer;
pub mod call;
pub mod corpus;
pub mod export;
pub mod held_out;
pub mod manners;
pub mod model;
pub mod names;
pub mod noise;
pub mod rng;
pub mod slots;
pub mod spoken;
pub mod template;
pub mod train;
pub mod vocabulary;
