//! The guides for those who extend Farpost speak of files, tests and code that are really there.

use std::path::{Path, PathBuf};

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// All Rust sources under `folder`, as path and text.
fn sources(folder: &Path, found: &mut Vec<(PathBuf, String)>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = std::fs::read_to_string(&path).unwrap();
            found.push((path, text));
        }
    }
}

/// What a guide names and shows.
struct Counts {
    snippets: usize,
    files: usize,
    tests: usize,
}

/// Looks for everything that a guide names, and for its snippets, whose `stand_in` names stand for existing ones.
fn check(guide: &str, stand_ins: &[(&str, &str)]) -> Counts {
    let guide = std::fs::read_to_string(workspace().join("docs").join(guide)).unwrap();
    let mut all = Vec::new();
    for folder in ["kernels/src", "models/src", "models/tests", "runtime/tests"] {
        sources(&workspace().join(folder), &mut all);
    }
    let mut counts = Counts { snippets: 0, files: 0, tests: 0 };
    let mut prose = String::new();
    for (number, part) in guide.split("```").enumerate() {
        match part.strip_prefix("rust\n") {
            Some(snippet) => {
                let real = stand_ins.iter().fold(snippet.to_owned(), |text, (from, to)| text.replace(from, to));
                let real: String = real.lines().map(str::trim).collect();
                let has_it = |text: &String| text.lines().map(str::trim).collect::<String>().contains(&real);
                assert!(all.iter().any(|(_, text)| has_it(text)), "{snippet}");
                counts.snippets += 1;
            }
            None if number % 2 == 0 => prose.push_str(part),
            None => {}
        }
    }
    for name in prose.split('`').skip(1).step_by(2) {
        let name = stand_ins.iter().fold(name.to_owned(), |name, (from, to)| name.replace(from, to));
        if name.ends_with(".rs") {
            assert!(all.iter().any(|(path, _)| path.ends_with(&name)), "file {name}");
            counts.files += 1;
        } else if name.ends_with('/') {
            assert!(workspace().join(&name).is_dir(), "folder {name}");
        } else if name.matches('_').count() >= 4 {
            let function = format!("fn {}(", name.rsplit("::").next().unwrap());
            assert!(all.iter().any(|(_, text)| text.contains(&function)), "test {name}");
            counts.tests += 1;
        }
    }
    counts
}

#[test]
fn the_guide_to_quant_formats_names_and_shows_what_exists() {
    // The snippets are the code of Q4_0 under another name.
    let counts = check("add-a-quant-format.md", &[("XQ4", "Q4_0"), ("xq4", "q4_0")]);
    assert_eq!(counts.snippets, 2);
    assert!(counts.files > 15 && counts.tests > 7, "{} files and {} tests", counts.files, counts.tests);
}

#[test]
fn the_guide_to_model_families_names_and_shows_what_exists() {
    // The snippets are the code of Llama under another name.
    let counts = check("add-a-model-family.md", &[("nova", "llama")]);
    assert_eq!(counts.snippets, 3);
    assert!(counts.files > 15 && counts.tests > 7, "{} files and {} tests", counts.files, counts.tests);
}
