//! `docs/add-a-quant-format.md` speaks of files, tests and code that are really there.

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

#[test]
fn every_file_test_and_snippet_of_the_guide_exists() {
    let guide = std::fs::read_to_string(workspace().join("docs/add-a-quant-format.md")).unwrap();
    let mut all = Vec::new();
    for folder in ["kernels/src", "models/src", "models/tests"] {
        sources(&workspace().join(folder), &mut all);
    }
    let (mut snippets, mut prose) = (Vec::new(), String::new());
    for (number, part) in guide.split("```").enumerate() {
        match part.strip_prefix("rust\n") {
            Some(snippet) => snippets.push(snippet),
            None if number % 2 == 0 => prose.push_str(part),
            None => {}
        }
    }
    // The snippets are the code of Q4_0 under another name.
    assert_eq!(snippets.len(), 2);
    for snippet in snippets {
        let real = snippet.replace("XQ4", "Q4_0").replace("xq4", "q4_0");
        let real: String = real.lines().map(str::trim).collect();
        let has_it = |text: &String| text.lines().map(str::trim).collect::<String>().contains(&real);
        assert!(all.iter().any(|(_, text)| has_it(text)), "{snippet}");
    }
    let (mut n_files, mut n_tests) = (0, 0);
    for name in prose.split('`').skip(1).step_by(2) {
        if name.ends_with(".rs") {
            assert!(all.iter().any(|(path, _)| path.ends_with(name)), "file {name}");
            n_files += 1;
        } else if name.ends_with('/') {
            assert!(workspace().join(name).is_dir(), "folder {name}");
        } else if name.matches('_').count() >= 4 {
            let function = format!("fn {}(", name.rsplit("::").next().unwrap());
            assert!(all.iter().any(|(_, text)| text.contains(&function)), "test {name}");
            n_tests += 1;
        }
    }
    assert!(n_files > 15 && n_tests > 7, "the guide names {n_files} files and {n_tests} tests");
}
