//! GGUF model files: opened from a memory map, checked before anything is used, written anew.
//!
//! [`File`] gives metadata and tensors as views of the map; nothing is copied. What is checked, and how a file that
//! shrinks under the map is survived, is told in `docs/gguf.md`.

mod ahead;
mod cursor;
mod error;
mod file;
mod guard;
mod hash;
mod map;
mod metadata;
mod need;
mod owned;
mod partial;
mod place;
mod read;
mod split;
mod value;
mod write;

pub use ahead::ReadAhead;
pub(crate) use error::Shortened;
pub use error::{GgufError, Problem};
pub use file::{Access, File, Tensor};
pub use guard::install_sigbus_guard;
pub use hash::ContentHash;
pub use map::{Identity, Map};
pub use metadata::Metadata;
pub use need::{KvNeed, LayerNeed, MemoryNeed};
pub use owned::OwnedValue;
pub use partial::Partial;
pub use place::Place;
pub(crate) use place::room;
pub use value::{Array, StringArray, StringIter, Value, ValueType};
pub use write::{FileWriter, TensorData, Writer};
