//! Writes the files that the fuzz targets start from into `fuzz/corpus`.

use std::fs;
use std::io;
use std::path::Path;

use farpost_fuzz::{BODIES, KEYS, TEMPLATES, TURNS, byte_level, every_kind, sentence_pieces, word_pieces};
use farpost_kernels::tensor::DType;

fn main() -> io::Result<()> {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    let write = |target: &str, name: &str, bytes: &[u8]| {
        let folder = corpus.join(target);
        fs::create_dir_all(&folder)?;
        fs::write(folder.join(name), bytes)
    };
    write("gguf", "every-kind", &every_kind())?;
    for (name, bytes) in
        [("byte-level", byte_level()), ("sentence-pieces", sentence_pieces()), ("word-pieces", word_pieces())]
    {
        write("gguf", name, &bytes)?;
        write("tokenizer", name, &bytes)?;
    }
    for (number, source) in TEMPLATES.iter().enumerate() {
        write("template", &format!("{number}"), format!("{source}\0<|im_end|> \u{e9}\n").as_bytes())?;
    }
    for (number, (route, body)) in BODIES.iter().enumerate() {
        write("request", &format!("{number}"), &[&[*route], body.as_bytes()].concat())?;
        write("json", &format!("{number}"), body.as_bytes())?;
    }
    write("keys", "keys", KEYS.as_bytes())?;
    for (number, text) in TURNS.iter().enumerate() {
        write("turn", &format!("{number}"), &[&[number as u8, 5], text.as_bytes()].concat())?;
    }
    for (number, dtype) in DType::all().enumerate() {
        let blocks = vec![0x3C; dtype.block_bytes() * 2];
        write("quant_decode", dtype.name(), &[&[number as u8], &blocks[..]].concat())?;
    }
    Ok(())
}
