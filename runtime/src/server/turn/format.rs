//! How families of models write calls of tools. Found from a model's template and tokens.

use farpost_models::template::ChatTemplate;
use farpost_models::tokenizer::Tokenizer;

/// Who tells a model of its tools.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::server) enum Teller {
    /// Its template.
    Template,
    /// Nobody: it was trained on them.
    Training,
    /// A message before all others, since the template knows no tools.
    Instruction,
}

/// Calls as JSON objects with a name and arguments, and what stands around them.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::server) struct CallFormat {
    /// Before a call, or before the list of calls; may be empty.
    pub(in crate::server) open: &'static str,
    pub(in crate::server) close: &'static str,
    /// Calls are an array.
    pub(in crate::server) is_list: bool,
    /// Keys of an object.
    pub(in crate::server) name: &'static str,
    pub(in crate::server) arguments: &'static str,
    /// No spaces after commas and colons.
    pub(in crate::server) is_compact: bool,
    /// The family writes one call only.
    pub(in crate::server) is_single: bool,
    pub(in crate::server) teller: Teller,
}

const BASE: CallFormat = CallFormat {
    open: "",
    close: "",
    is_list: false,
    name: "name",
    arguments: "arguments",
    is_compact: false,
    is_single: false,
    teller: Teller::Template,
};

/// Hermes, Qwen 2.5 and 3, and many that follow them.
pub(super) static TAGGED: CallFormat = CallFormat { open: "<tool_call>", close: "</tool_call>", ..BASE };
/// Mistral.
pub(super) static MISTRAL: CallFormat = CallFormat { open: "[TOOL_CALLS]", is_list: true, ..BASE };
/// Granite.
pub(super) static GRANITE: CallFormat = CallFormat { open: "<|tool_call|>", is_list: true, ..BASE };
/// Phi-4 mini.
pub(super) static PHI: CallFormat = CallFormat { close: "<|/tool_call|>", ..GRANITE };
/// Llama 3.
pub(super) static LLAMA: CallFormat = CallFormat { arguments: "parameters", is_single: true, ..BASE };
/// The built-in model, and others that are trained on one set of tools in the same way.
pub(super) static TRAINED: CallFormat =
    CallFormat { name: "tool", is_compact: true, is_single: true, teller: Teller::Training, ..BASE };
/// All others: they are told in words, and asked to write what most models have seen.
pub(super) static INSTRUCTED: CallFormat = CallFormat { teller: Teller::Instruction, ..TAGGED };

/// What the tokens of models begin with that were trained on their tools.
const TRAINED_TOKEN: &[u8] = br#"{"tool":""#;

/// All formats.
#[cfg(feature = "fuzzing")]
pub(in crate::server) static ALL: [&CallFormat; 7] = [&TAGGED, &MISTRAL, &GRANITE, &PHI, &LLAMA, &TRAINED, &INSTRUCTED];

impl CallFormat {
    /// That of the model with this template and these tokens.
    pub(in crate::server) fn of(template: &ChatTemplate, tokenizer: &Tokenizer) -> &'static Self {
        let source = template.source();
        let has = |text: &str| source.contains(text);
        let mut tokens = (0..tokenizer.n_vocab() as u32).map(|id| tokenizer.token_bytes(id));
        if tokens.any(|bytes| bytes.starts_with(TRAINED_TOKEN)) {
            &TRAINED
        } else if !template.uses("tools") && !template.uses("available_tools") {
            &INSTRUCTED
        } else if has("[TOOL_CALLS]") && !has("[ARGS]") {
            &MISTRAL
        } else if has("<tool_call>") && !has("<function=") {
            &TAGGED
        } else if has("<|/tool_call|>") {
            &PHI
        } else if has("<|tool_call|>") {
            &GRANITE
        } else if has("\"parameters\": ") && has("{\"name\": ") {
            &LLAMA
        } else {
            // The template tells of tools, but calls are in a form that is not read here.
            &INSTRUCTED
        }
    }

    /// What a call of `name` begins with, up to its arguments.
    pub(super) fn head(&self, name: &str) -> String {
        let space = if self.is_compact { "" } else { " " };
        format!("{{\"{}\":{space}\"{name}\",{space}\"{}\":{space}", self.name, self.arguments)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_what_families_write() {
        assert_eq!(TAGGED.head("f"), r#"{"name": "f", "arguments": "#);
        assert_eq!(LLAMA.head("f"), r#"{"name": "f", "parameters": "#);
        assert_eq!(TRAINED.head("f"), r#"{"tool":"f","arguments":"#);
    }

    #[test]
    fn published_templates_are_known() {
        let tokenizer = farpost_firmware_tests::golden("vocab/qwen2.gguf");
        let file = farpost_models::gguf::File::open(&tokenizer).unwrap();
        let tokenizer = Tokenizer::from_metadata(file.metadata()).unwrap();
        for (name, format) in [
            ("Qwen-Qwen2.5-7B-Instruct", &TAGGED),
            ("Qwen-Qwen3-0.6B", &TAGGED),
            ("NousResearch-Hermes-3-Llama-3.1-8B-tool_use", &TAGGED),
            ("Bielik-11B-v3.0-Instruct", &TAGGED),
            ("meta-llama-Llama-3.1-8B-Instruct", &LLAMA),
            ("meta-llama-Llama-3.2-3B-Instruct", &LLAMA),
            ("mistralai-Mistral-Nemo-Instruct-2407", &MISTRAL),
            ("ibm-granite-granite-3.3-2B-Instruct", &GRANITE),
            ("Qwen3-Coder", &INSTRUCTED),
            ("Qwen3.5-4B", &INSTRUCTED),
            ("google-gemma-2-2b-it", &INSTRUCTED),
            ("microsoft-Phi-3.5-mini-instruct", &INSTRUCTED),
            ("HuggingFaceTB-SmolLM3-3B", &INSTRUCTED),
        ] {
            let source = farpost_firmware_tests::golden(&format!("templates/{name}.jinja"));
            let template = ChatTemplate::for_tokenizer(&std::fs::read_to_string(source).unwrap(), &tokenizer).unwrap();
            assert_eq!(CallFormat::of(&template, &tokenizer), format, "{name}");
        }
    }
}
