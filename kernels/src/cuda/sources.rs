//! The sources of kernels: files under `kernels/`, put together, with what the host defines before them.

use super::driver::Source;
use crate::backend::KvType;
use crate::device::layout::Layout;

/// Kernels that are compiled together.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Module {
    /// Rows of tables and products with weights that lie as `constants` say.
    Products { constants: Vec<(&'static str, u32)>, is_fine: bool },
    /// Ops on values by themselves.
    Pointwise { is_fine: bool },
    /// Keys, values and attention.
    Attention { kv_bits: u32, heads: u32, is_wide: bool },
}

macro_rules! files {
    ($($name:literal),*) => {
        &[$(($name, include_str!(concat!("kernels/", $name, ".cu")))),*]
    };
}

impl Module {
    /// Of weights in this form.
    pub(super) fn products(layout: &Layout, is_fine: bool) -> Self {
        let constants: Vec<_> = layout.constants().into_iter().map(|(name, value)| (name, value as u32)).collect();
        // Of plain numbers there are no bytes.
        let is_plain = constants.iter().any(|(name, bits)| *name == "BITS" && *bits >= 16);
        Self::Products { constants, is_fine: is_fine && !is_plain }
    }

    /// Of keys and values of this type: a block has `heads` query heads, values up to so many elements.
    pub(super) fn attention(kv_type: KvType, heads: usize, value_dim: usize) -> Self {
        let kv_bits = match kv_type {
            KvType::F16 => 16,
            KvType::Q8_0 => 8,
            KvType::F32 => 32,
        };
        Self::Attention { kv_bits, heads: heads as u32, is_wide: value_dim > 512 }
    }

    fn defined(&self) -> Vec<(&'static str, u32)> {
        match self {
            Self::Products { constants, is_fine } => {
                let optional = ["SUB", "OFFSET", "HAS_MIN", "HALVES", "HAS_TABLE"];
                let is_missing = |name: &&str| !constants.iter().any(|(known, _)| known == name);
                let missing = optional.into_iter().filter(is_missing).map(|name| (name, 0));
                constants.iter().copied().chain(missing).chain([("FINE", u32::from(*is_fine))]).collect()
            }
            Self::Pointwise { is_fine } => vec![("FINE", u32::from(*is_fine))],
            Self::Attention { kv_bits, heads, is_wide } => {
                vec![("KV", *kv_bits), ("HEADS", *heads), ("WIDE", u32::from(*is_wide))]
            }
        }
    }

    /// The whole text.
    pub(super) fn source(&self) -> Source {
        let (name, files): (_, &[(&str, &str)]) = match self {
            Self::Products { .. } => ("products", files!("base", "activation", "quantized", "weights", "products")),
            Self::Pointwise { .. } => ("pointwise", files!("base", "activation", "quantized", "pointwise")),
            Self::Attention { .. } => ("attention", files!("base", "attention")),
        };
        let mut source = Source { name: name.to_owned(), text: String::new() };
        for (name, value) in self.defined() {
            source.text += &format!("#define {name} {value}u\n");
            source.name += &format!(" {name}={value}");
        }
        for (name, text) in files {
            source.text += &format!("#line 1 \"{name}.cu\"\n{text}");
        }
        source
    }
}
