//! Asking the model as a program would: its own tokenizer and chat template from the file, then greedy decoding.
//!
//! The network here is the one in candle, over the file's weights as decoded: a second opinion on the runtime's.

use crate::model::Network;
use candle_core::{Device, Result, Tensor, Var};
use farpost_models::gguf::File;
use farpost_models::template::{ChatTemplate, RenderInput, TemplateError};
use farpost_models::tokenizer::{Tokenizer, TokenizerError};

/// Most tokens of an answer.
const LONGEST: usize = 64;

/// Why the model could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum AnswerError {
    /// The file's tokenizer.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// The file's chat template.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// Computing.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}

/// Prompts of one file.
pub struct Asker {
    tokenizer: Tokenizer,
    template: ChatTemplate,
}

impl Asker {
    /// From the description in `file`.
    pub fn new(file: &File) -> std::result::Result<Self, AnswerError> {
        let tokenizer = Tokenizer::from_metadata(file.metadata())?;
        let template = ChatTemplate::from_metadata(file.metadata(), &tokenizer)?;
        Ok(Self { tokenizer, template })
    }

    /// Token ids of the prompt for `text`.
    pub fn prompt(&self, text: &str) -> std::result::Result<Vec<u32>, AnswerError> {
        let messages = serde_json::json!([{"role": "user", "content": text}]);
        Ok(self.template.encode(&self.tokenizer, &RenderInput::new(messages))?)
    }

    /// The greedy answer of `network` to `text`.
    pub fn answer(&self, network: &Network, text: &str) -> std::result::Result<String, AnswerError> {
        let mut ids = self.prompt(text)?;
        let start = ids.len();
        while ids.len() < start + LONGEST {
            let next = likeliest(network, &ids)?;
            if self.tokenizer.is_stop(next) {
                break;
            }
            ids.push(next);
        }
        Ok(String::from_utf8_lossy(&self.tokenizer.decode(&ids[start..], false)).into_owned())
    }
}

/// The most likely token after `ids`.
fn likeliest(network: &Network, ids: &[u32]) -> Result<u32> {
    let cpu = &Device::Cpu;
    let tokens = Tensor::new(ids, cpu)?.unsqueeze(0)?;
    let last = Tensor::new(&[ids.len() as u32 - 1], cpu)?;
    let see = |_: &str, var: &Var| -> Result<Tensor> { Ok(var.as_detached_tensor()) };
    let (_, best) = network.losses(&tokens, &last, &Tensor::new(&[0u32], cpu)?, &see)?;
    Ok(best.to_vec1::<u32>()?[0])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::corpus::Corpus;
    use crate::model::Shape;
    use crate::template::Split;
    use crate::train::{Options, encode, heard, learn_vocabulary};
    use std::path::Path;

    fn packed() -> File {
        File::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("pocket.gguf")).unwrap()
    }

    #[test]
    fn training_saw_the_very_tokens_that_the_runtime_makes() {
        let file = packed();
        let asker = Asker::new(&file).unwrap();
        let (_, vocabulary) = crate::export::read(&file).unwrap();
        for split in [Split::Train, Split::Dev, Split::Test] {
            let corpus = Corpus::new(1, split);
            for index in 0..1000 {
                let example = corpus.example(index);
                let trained = encode(&vocabulary, &example);
                let prompt = asker.prompt(&example.text).unwrap();
                assert_eq!(prompt, trained.ids[..trained.answer], "{}", example.text);
                assert_eq!(asker.tokenizer.decode(&prompt, false), heard(&example.text).as_bytes());
                let answer = &trained.ids[trained.answer..trained.ids.len() - 1];
                assert_eq!(asker.tokenizer.decode(answer, false), example.answer.as_bytes());
                assert!(trained.ids.len() + 1 < Shape::pocket(0).context, "{}", example.text);
            }
        }
    }

    #[test]
    fn the_packed_vocabulary_is_the_one_learned_from_the_training_text() {
        let (_, vocabulary) = crate::export::read(&packed()).unwrap();
        let learned = learn_vocabulary(&Options::default());
        assert_eq!(vocabulary.tokens, learned.tokens);
        assert_eq!(vocabulary.merges, learned.merges);
    }

    #[test]
    fn the_packed_model_answers_what_a_newcomer_tries() {
        let file = packed();
        let (network, _) = crate::export::read(&file).unwrap();
        let asker = Asker::new(&file).unwrap();
        let cases = [
            ("turn on the porch light at nine", "set_light", r#"{"room":"porch","state":"on","at":"09:00"}"#),
            ("Turn off the kitchen lights.", "set_light", r#"{"room":"kitchen","state":"off"}"#),
            ("set the living room to 21 degrees", "set_heating", r#"{"room":"living_room","temperature":21}"#),
            ("what's the humidity in the greenhouse", "read_sensor", r#"{"sensor":"humidity","place":"greenhouse"}"#),
            ("close valve 3 in ten minutes", "set_valve", r#"{"valve":"valve_3","state":"closed","in":"10m"}"#),
            ("run the well pump for an hour", "set_pump", r#"{"pump":"well","state":"on","for":"1h"}"#),
            ("show me the front door camera", "camera", r#"{"camera":"front_door","action":"show"}"#),
            ("set a timer for five minutes", "set_timer", r#"{"duration":"5m"}"#),
            ("cancel the pasta timer", "cancel_timer", r#"{"label":"pasta"}"#),
            ("tell me a joke", "none", r#"{"reason":"out_of_scope"}"#),
        ];
        for (text, tool, arguments) in cases {
            let answer = format!(r#"{{"tool":"{tool}","arguments":{arguments}}}"#);
            assert_eq!(asker.answer(&network, text).unwrap(), answer, "{text}");
        }
    }
}
