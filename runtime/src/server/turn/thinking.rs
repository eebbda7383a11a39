//! Reasoning: what stands around it, and whether a prompt ends within it.

use farpost_models::template::ChatTemplate;

/// What a family writes around its reasoning.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::server) struct Marks {
    pub(in crate::server) open: &'static str,
    pub(in crate::server) close: &'static str,
}

/// DeepSeek, Qwen, SmolLM, LFM and many others; Magistral.
const KNOWN: [Marks; 2] = [Marks { open: "<think>", close: "</think>" }, Marks { open: "[THINK]", close: "[/THINK]" }];

impl Marks {
    /// Those of most families.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(in crate::server) const MOST: &'static Self = &KNOWN[0];

    /// Those of the family that a template belongs to: it takes them out of earlier turns, or writes them itself.
    pub(in crate::server) fn of(template: &ChatTemplate) -> Option<&'static Self> {
        KNOWN.iter().find(|marks| template.source().contains(marks.close))
    }

    /// Whether the reasoning was begun by `prompt`.
    pub(in crate::server) fn is_open_in(&self, prompt: &str) -> bool {
        prompt.trim_end().ends_with(self.open)
    }

    /// Whether the reasoning was ended by `prompt`.
    pub(in crate::server) fn is_over_in(&self, prompt: &str) -> bool {
        prompt.trim_end().ends_with(self.close)
    }
}
