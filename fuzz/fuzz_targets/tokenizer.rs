//! Any GGUF file as a vocabulary: refused, or texts can be encoded and all ids decoded. The end of the file serves as
//! text, too.

#![no_main]

use farpost_models::gguf::File;
use farpost_models::tokenizer::{Special, Tokenizer};
use libfuzzer_sys::fuzz_target;

const TEXT: &str = " Héllo, wörld: 12345 <s></s><|im_end|>\r\n\tab ba 漢字 🚀 don't ";

fuzz_target!(|bytes: &[u8]| {
    let Ok(file) = File::from_bytes("fuzz.gguf", bytes.to_vec().into()) else { return };
    let Ok(tokenizer) = Tokenizer::from_metadata(file.metadata()) else { return };
    let n_vocab = tokenizer.n_vocab() as u32;
    let tail = String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(200)..]);
    for text in [TEXT, &tail] {
        for special in [Special::AsText, Special::Parse] {
            let ids = tokenizer.encode_prompt(text, special);
            assert!(ids.iter().all(|&id| id < n_vocab));
            let mut stream = tokenizer.stream().with_special(true);
            let mut streamed: String = ids.iter().map(|&id| stream.push(id).to_owned()).collect();
            streamed.push_str(&stream.finish());
            assert_eq!(streamed, String::from_utf8_lossy(&tokenizer.decode(&ids, true)));
        }
    }
    let all: Vec<u32> = (0..n_vocab + 2).collect();
    tokenizer.decode(&all, true);
    tokenizer.decode_tidy(&all, false);
});
