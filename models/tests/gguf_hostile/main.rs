//! GGUF files that mean harm: each defect by itself with the message it must give, then any damage at all.
//!
//! The files are made here, field by field (`raw.rs`), never stored. Memory is counted (`memory.rs`): whatever a file
//! claims, reading it must not take more than a few times its size.

mod defect;
mod edit;
mod header;
mod memory;
mod metadata;
mod raw;
mod split;
mod tensors;
mod tokenizer;
mod touch;
mod vocabulary;
mod whole;
