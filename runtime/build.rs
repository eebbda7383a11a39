//! What `/version` and the metrics say of the build: the commit, and when it was. Packagers, who build without a
//! repository, set `FARPOST_COMMIT` and `SOURCE_DATE_EPOCH`.

use std::path::Path;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=FARPOST_COMMIT");
    println!("cargo::rerun-if-env-changed=SOURCE_DATE_EPOCH");
    let given = |name: &str| std::env::var(name).ok().filter(|value| !value.trim().is_empty());
    let commit = given("FARPOST_COMMIT").or_else(commit).unwrap_or_else(|| "unknown".to_owned());
    let built = given("SOURCE_DATE_EPOCH")
        .and_then(|seconds| seconds.trim().parse::<u64>().ok())
        .unwrap_or_else(|| SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()));
    println!("cargo::rustc-env=FARPOST_COMMIT={}", commit.trim());
    println!("cargo::rustc-env=FARPOST_BUILT={built}");
}

/// The commit that is checked out, if these files are of a repository. It is looked at again when another one is.
fn commit() -> Option<String> {
    // A package that was unpacked within somebody else's repository is none of its commits.
    git(&["ls-files", "--error-unmatch", "build.rs"])?;
    let commit = git(&["rev-parse", "--short=12", "HEAD"])?;
    let branch = git(&["symbolic-ref", "--quiet", "HEAD"]);
    let names = ["HEAD", "packed-refs"].into_iter().chain(branch.as_deref());
    for file in names.filter_map(|name| git(&["rev-parse", "--git-path", name])) {
        // One that is not there would be taken for changed each time.
        if Path::new(&file).exists() {
            println!("cargo::rerun-if-changed={file}");
        }
    }
    Some(commit)
}

fn git(args: &[&str]) -> Option<String> {
    let output = Command::new("git").args(args).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}
