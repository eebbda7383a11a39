//! The guides in `docs/` say what is so: links lead somewhere, tables hold what the code holds.

use std::path::{Path, PathBuf};

use farpost_kernels::quant::can_encode;
use farpost_kernels::tensor::DType;
use farpost_models::gguf::{File, TensorData, Writer};
use farpost_models::quantize::Mixture;
use farpost_models::tokenizer::{Tokenizer, TokenizerError};

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn read(name: &str) -> String {
    std::fs::read_to_string(workspace().join(name)).unwrap()
}

/// All pages: in the root and under `docs/`.
fn pages() -> Vec<PathBuf> {
    let folders = ["", "docs", "docs/decisions"].map(|folder| workspace().join(folder));
    let entries = folders.iter().flat_map(|folder| std::fs::read_dir(folder).unwrap());
    entries.map(|entry| entry.unwrap().path()).filter(|path| path.extension().is_some_and(|e| e == "md")).collect()
}

/// What a heading is called in a link.
fn anchor(heading: &str) -> String {
    let kept = heading.trim().to_lowercase();
    kept.chars()
        .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-'))
        .map(|c| if c == ' ' { '-' } else { c })
        .collect()
}

#[test]
fn every_link_between_pages_leads_to_a_file_and_a_heading() {
    let mut n_links = 0;
    for page in pages() {
        let text = std::fs::read_to_string(&page).unwrap();
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if link.starts_with("http") {
                continue;
            }
            let (name, heading) = link.split_once('#').unwrap_or((link, ""));
            let target = if name.is_empty() { page.clone() } else { page.parent().unwrap().join(name) };
            assert!(target.exists(), "{}: {link}", page.display());
            if !heading.is_empty() {
                let there = std::fs::read_to_string(&target).unwrap();
                let mut headings = there.lines().filter(|line| line.starts_with('#'));
                let has_it = headings.any(|line| anchor(line.trim_start_matches('#')) == heading);
                assert!(has_it, "{}: {link}", page.display());
            }
            n_links += 1;
        }
    }
    assert!(n_links > 20, "{n_links} links");
}

#[test]
fn every_file_and_folder_a_guide_names_exists() {
    for page in ["docs/gguf.md", "docs/tokenizers.md", "docs/quantization.md"] {
        let text = read(page);
        let prose: String = text.split("```").step_by(2).collect();
        let ours =
            |name: &&str| ["kernels/", "models/", "fuzz/", "docs/"].iter().any(|folder| name.starts_with(folder));
        for name in prose.split('`').skip(1).step_by(2).filter(ours) {
            // Fuzzing makes that one.
            assert!(name == "fuzz/artifacts/" || workspace().join(name).exists(), "{page}: {name}");
        }
    }
}

#[test]
fn the_table_of_types_has_every_type_with_its_size_and_says_which_can_be_written() {
    let text = read("docs/quantization.md");
    let (table, rest) = text.split_once("**Read, not written:**").unwrap();
    let rest = rest.split_whitespace().collect::<Vec<_>>().join(" ");
    for dtype in DType::all() {
        let bits = dtype.block_bytes() as f64 * 8.0 / dtype.block_len() as f64;
        if can_encode(dtype) {
            let row = table.lines().find(|line| line.starts_with(&format!("| {dtype} |")));
            let cells: Vec<&str> =
                row.unwrap_or_else(|| panic!("{dtype} has no row")).split('|').map(str::trim).collect();
            assert_eq!(cells[2], dtype.block_len().to_string(), "{dtype}");
            assert!((cells[3].parse::<f64>().unwrap() - bits).abs() < 0.006, "{dtype}: {} for {bits}", cells[3]);
        } else {
            let (_, after) = rest.split_once(&format!("{dtype} (")).unwrap_or_else(|| panic!("{dtype} is not named"));
            let stated: f64 = after.split([' ', ')']).next().unwrap().parse().unwrap();
            assert!((stated - bits).abs() < 0.006, "{dtype}: {stated} for {bits}");
        }
    }
}

#[test]
fn the_table_of_mixtures_has_every_mixture() {
    let text = read("docs/quantization.md");
    let (_, table) = text.split_once("## Mixtures").unwrap();
    let names: Vec<&str> = table.lines().filter_map(|line| line.strip_prefix("| ")?.split(" |").next()).collect();
    for mixture in Mixture::all() {
        let is_named = |row: &&str| row.split([',', ' ', '(']).any(|name| name == mixture.name());
        assert!(names.iter().any(is_named), "{}", mixture.name());
    }
}

#[test]
fn the_table_of_pre_tokenizers_is_the_list_that_messages_give() {
    let mut writer = Writer::new();
    writer.set("tokenizer.ggml.model", "gpt2").set("tokenizer.ggml.tokens", &["a"][..]);
    writer.set("tokenizer.ggml.pre", "none of them");
    let bytes = writer.start("m", Vec::new()).and_then(TensorData::finish).unwrap();
    let file = File::from_bytes("m", bytes.into()).unwrap();
    let error = Tokenizer::from_metadata(file.metadata()).unwrap_err();
    let TokenizerError::UnknownPreTokenizer { supported, .. } = error else { panic!("{error}") };
    let mut expected: Vec<&str> = supported.split(", ").collect();

    let text = read("docs/tokenizers.md");
    let (_, table) = text.split_once("| words are cut as in | names |").unwrap();
    let rows = table.lines().skip(2).take_while(|line| line.starts_with('|'));
    let mut named: Vec<&str> = rows.flat_map(|row| row.split('|').nth(2).unwrap().trim().split(", ")).collect();
    named.sort_unstable();
    expected.sort_unstable();
    assert_eq!(named, expected);
}
