//! Block formats: decode to f32, encode from f32.
//!
//! One file per block family. The scalar code here is the truth that every kernel is tested against; layouts are
//! those of GGUF files, tested bit for bit against golden blocks of independent software.
