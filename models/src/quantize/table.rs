//! The named mixtures, as a table: base type, and what attention values, down projections and others get instead.
//!
//! The rules are those of the quantizer most files were made with (kernels.md §8), so that files of one name are alike
//! wherever they were made.

use farpost_kernels::tensor::DType;

use super::QuantizeError;

/// How the type of one kind of tensor depends on the layer and the model.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Rule {
    /// The base type.
    Base,
    /// One type everywhere.
    Always(DType),
    /// A better type in the first and last eighth of the layers and in every third between.
    WhereMore(DType),
    /// A type for so many first layers, then another.
    FirstLayers(usize, DType, DType),
    /// A type for the first 1/n of the layers, then another.
    FirstShare(usize, DType, DType),
    /// A type if at least four query heads share a key-value head, else another.
    SharedHeads(DType, DType),
}

/// Which tensor of a model gets which type, under a name such as `q4_k_m`.
#[derive(Debug, PartialEq)]
pub struct Mixture {
    pub(super) name: &'static str,
    /// What files call it in `general.file_type`.
    pub(super) file_type: u32,
    pub(super) base: DType,
    pub(super) value: Rule,
    pub(super) down: Rule,
    pub(super) attention_output: Rule,
    pub(super) fused_qkv: Rule,
    /// The language-model head, or the embedding where it is the head.
    pub(super) head: DType,
    /// The embedding where it is not the head.
    pub(super) embedding: Rule,
}

const fn mixture(name: &'static str, file_type: u32, base: DType, head: DType) -> Mixture {
    use Rule::Base;
    let (value, down, attention_output, fused_qkv, embedding) = (Base, Base, Base, Base, Base);
    Mixture { name, file_type, base, value, down, attention_output, fused_qkv, head, embedding }
}

use DType::{BF16, F16, F32, IQ4_NL, IQ4_XS, MXFP4, Q2_K, Q3_K, Q4_0, Q4_1, Q4_K, Q5_0, Q5_1, Q5_K, Q6_K, Q8_0};
use DType::{TQ1_0, TQ2_0};
use Rule::{Always, FirstLayers, FirstShare, SharedHeads, WhereMore};

static MIXTURES: [Mixture; 22] = [
    mixture("f32", 0, F32, F32),
    mixture("f16", 1, F16, F16),
    mixture("bf16", 32, BF16, BF16),
    mixture("q8_0", 7, Q8_0, Q8_0),
    mixture("q4_0", 2, Q4_0, Q6_K),
    mixture("q4_1", 3, Q4_1, Q6_K),
    mixture("q5_0", 8, Q5_0, Q6_K),
    mixture("q5_1", 9, Q5_1, Q6_K),
    Mixture {
        value: SharedHeads(Q4_K, Q3_K),
        down: Always(Q3_K),
        attention_output: Always(Q3_K),
        ..mixture("q2_k", 10, Q2_K, Q6_K)
    },
    mixture("q3_k_s", 11, Q3_K, Q6_K),
    Mixture {
        value: FirstLayers(2, Q5_K, Q4_K),
        down: FirstShare(16, Q5_K, Q4_K),
        attention_output: Always(Q4_K),
        fused_qkv: Always(Q4_K),
        ..mixture("q3_k_m", 12, Q3_K, Q6_K)
    },
    Mixture {
        value: Always(Q5_K),
        down: Always(Q5_K),
        attention_output: Always(Q5_K),
        fused_qkv: Always(Q4_K),
        ..mixture("q3_k_l", 13, Q3_K, Q6_K)
    },
    Mixture { value: FirstLayers(4, Q5_K, Q4_K), down: FirstShare(8, Q5_K, Q4_K), ..mixture("q4_k_s", 14, Q4_K, Q6_K) },
    Mixture {
        value: WhereMore(Q6_K),
        down: WhereMore(Q6_K),
        fused_qkv: Always(Q5_K),
        ..mixture("q4_k_m", 15, Q4_K, Q6_K)
    },
    mixture("q5_k_s", 16, Q5_K, Q6_K),
    Mixture {
        value: WhereMore(Q6_K),
        down: WhereMore(Q6_K),
        fused_qkv: Always(Q6_K),
        ..mixture("q5_k_m", 17, Q5_K, Q6_K)
    },
    mixture("q6_k", 18, Q6_K, Q6_K),
    Mixture {
        value: SharedHeads(Q5_K, IQ4_NL),
        down: FirstShare(8, Q5_K, IQ4_NL),
        ..mixture("iq4_nl", 25, IQ4_NL, Q6_K)
    },
    Mixture {
        value: SharedHeads(Q5_K, IQ4_XS),
        down: FirstShare(8, Q5_K, IQ4_XS),
        ..mixture("iq4_xs", 30, IQ4_XS, Q6_K)
    },
    mixture("mxfp4", 38, MXFP4, Q6_K),
    // Embeddings of three values would not tell words apart.
    Mixture { embedding: Always(Q4_K), ..mixture("tq1_0", 36, TQ1_0, Q6_K) },
    Mixture { embedding: Always(Q4_K), ..mixture("tq2_0", 37, TQ2_0, Q6_K) },
];

impl Mixture {
    /// Every mixture.
    pub fn all() -> impl Iterator<Item = &'static Self> {
        MIXTURES.iter()
    }

    /// The mixture called `name`, in any case; `q3_k`, `q4_k` and `q5_k` mean the medium ones.
    pub fn from_name(name: &str) -> Result<&'static Self, QuantizeError> {
        let lower = name.to_ascii_lowercase();
        let full = match lower.as_str() {
            "q3_k" | "q4_k" | "q5_k" => format!("{lower}_m"),
            _ => lower,
        };
        Self::all().find(|mixture| mixture.name == full).ok_or_else(|| QuantizeError::UnknownMixture {
            name: name.to_owned(),
            known: Self::all().map(|mixture| mixture.name).collect::<Vec<_>>().join(", "),
        })
    }

    /// Its name, in lower case.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// The type of most matrices.
    pub fn base(&self) -> DType {
        self.base
    }

    /// What files call it in `general.file_type`.
    pub fn file_type(&self) -> u32 {
        self.file_type
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_in_any_case_and_unknown_ones_refused_with_the_list() {
        for mixture in Mixture::all() {
            assert_eq!(Mixture::from_name(&mixture.name.to_uppercase()).unwrap(), mixture);
        }
        assert_eq!(Mixture::from_name("q4_k").unwrap().name(), "q4_k_m");
        let error = Mixture::from_name("q7_0").unwrap_err().to_string();
        assert!(error.starts_with("type 'q7_0' is unknown, expected one of f32, f16, bf16, q8_0, q4_0,"), "{error}");
    }

    #[test]
    fn names_and_file_types_are_used_once_and_every_type_has_an_encoder() {
        let all: Vec<_> = Mixture::all().collect();
        for (number, mixture) in all.iter().enumerate() {
            let is_alike = |other: &&Mixture| other.name == mixture.name || other.file_type == mixture.file_type;
            assert!(!all[..number].iter().any(is_alike), "{}", mixture.name);
            for dtype in [mixture.base, mixture.head] {
                assert!(farpost_kernels::quant::can_encode(dtype), "{dtype}");
            }
        }
    }
}
