//! On a device whose every answer depends on all tokens that its cache holds: keys and values of other tokens, or in
//! another order, change the text.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use farpost_kernels::backend::{Activations, ImageShape, KvType};
use proptest::prelude::*;
use sha2::{Digest, Sha256};

use super::head::{FIXED_BYTES, SUM_BYTES};
use super::*;
use crate::engine::fake::{expected, fake, text_ids};
use crate::engine::session::tests::{generate, greedy, model, open};
use crate::engine::session::{Session, SessionOptions};
use crate::model::Model;

/// A folder that is gone when the test is over.
pub(in crate::engine) struct Folder(PathBuf);

impl Folder {
    pub(in crate::engine) fn new(test: &str) -> Self {
        let path = std::env::temp_dir().join(format!("farpost-session-file-{}-{test}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub(in crate::engine) fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn with(&self, name: &str, bytes: &[u8]) -> PathBuf {
        std::fs::write(self.file(name), bytes).unwrap();
        self.file(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn session(model: &Arc<Model>, context: usize) -> Session {
    open(model, &fake(model), context, 16)
}

/// A file of 23 tokens and their answer, with a note.
fn saved(model: &Arc<Model>, folder: &Folder) -> (PathBuf, Vec<u32>) {
    let mut session = session(model, 200);
    let prompt = text_ids(model)[..23].to_vec();
    generate(&mut session, &prompt, &greedy(8));
    session.save(&folder.file("saved"), b"a note").unwrap();
    (folder.file("saved"), session.cached().to_vec())
}

/// Checks that a session that has run something takes nothing of a file, and what it says.
fn refused(model: &Arc<Model>, session: &mut Session, path: &Path) -> String {
    let prompt = text_ids(model)[40..60].to_vec();
    generate(session, &prompt, &greedy(3));
    let before = session.cached().to_vec();
    let error = session.restore(path).unwrap_err().to_string();
    assert_eq!(session.cached(), before);
    let again = generate(session, &prompt, &greedy(3));
    assert_eq!((again.timings.cached_tokens, again.ids), (19, expected(model, &prompt, 3)));
    error
}

/// The file with its checksums made right again.
fn resealed(mut bytes: Vec<u8>) -> Vec<u8> {
    let number = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize;
    let head_bytes = FIXED_BYTES + number(20) * 16 + number(24) * 4 + number(28);
    let end = bytes.len() - SUM_BYTES;
    let sum = Sha256::digest(&bytes[..head_bytes]);
    bytes[head_bytes..][..SUM_BYTES].copy_from_slice(&sum);
    let sum = Sha256::digest(&bytes[head_bytes..end]);
    bytes[end..].copy_from_slice(&sum);
    bytes
}

#[test]
fn a_restored_session_goes_on_as_the_one_that_was_saved() {
    let (model, folder) = (model(), Folder::new("goes-on"));
    let mut first = session(&model, 200);
    let prompt = text_ids(&model)[..23].to_vec();
    let answer = generate(&mut first, &prompt, &greedy(8)).ids;
    first.save(&folder.file("saved"), b"a note").unwrap();
    let next = [&prompt[..], &answer, &text_ids(&model)[30..34]].concat();

    // Another context and other steps are no other text.
    let mut second = open(&model, &fake(&model), 64, 5);
    let restored = second.restore(&folder.file("saved")).unwrap();
    assert_eq!((restored.tokens.as_slice(), restored.note.as_slice()), (first.cached(), &b"a note"[..]));
    assert_eq!(second.cached(), first.cached());
    let goes_on = generate(&mut second, &next, &greedy(9));
    assert_eq!(goes_on.timings.cached_tokens, 30);
    assert_eq!(goes_on.ids, expected(&model, &next, 9));
    assert_eq!(goes_on.ids, generate(&mut first, &next, &greedy(9)).ids);

    // An empty one is saved and restored as well, in the place of what was there.
    let mut empty = session(&model, 200);
    empty.save(&folder.file("saved"), b"").unwrap();
    assert_eq!(second.restore(&folder.file("saved")).unwrap(), Restored { tokens: vec![], note: vec![] });
    assert_eq!(second.cached(), [0; 0]);
    assert_eq!(generate(&mut second, &prompt, &greedy(8)).ids, answer);
}

#[test]
fn damage_is_found_wherever_it_is_and_changes_nothing() {
    let (model, folder) = (model(), Folder::new("damage"));
    let (path, _) = saved(&model, &folder);
    let whole = std::fs::read(&path).unwrap();
    let mut session = session(&model, 200);
    let prompt = text_ids(&model)[40..60].to_vec();
    generate(&mut session, &prompt, &greedy(3));
    let before = session.cached().to_vec();
    for place in (0..whole.len()).filter(|place| *place < FIXED_BYTES || place % 3 == 0) {
        let mut bytes = whole.clone();
        bytes[place] ^= 1 << (place % 8);
        let error = session.restore(&folder.with("damaged", &bytes)).unwrap_err();
        let is_told = match place {
            0..8 => matches!(error, SessionFileError::NoSessionFile { .. }),
            8..12 => matches!(error, SessionFileError::Version { .. }),
            20..40 => matches!(error, SessionFileError::Size { .. } | SessionFileError::Checksum { .. }),
            _ => matches!(error, SessionFileError::Checksum { .. }),
        };
        assert!(is_told, "byte {place}: {error}");
        assert_eq!(session.cached(), before);
    }
    for len in (0..whole.len()).step_by(3) {
        let error = session.restore(&folder.with("cut", &whole[..len])).unwrap_err();
        let is_told = matches!(error, SessionFileError::NoSessionFile { .. } | SessionFileError::Size { .. });
        assert!(is_told && (len < 8) == matches!(error, SessionFileError::NoSessionFile { .. }), "{len}: {error}");
    }
    let longer = folder.with("longer", &[&whole[..], &[0]].concat());
    assert!(refused(&model, &mut session, &longer).ends_with("it is cut or damaged"));
}

#[test]
fn what_was_saved_elsewhere_is_refused_by_name() {
    let (model, folder) = (model(), Folder::new("foreign"));
    let (path, tokens) = saved(&model, &folder);
    let shown = path.display();
    let open = |options: SessionOptions| Session::open(Arc::clone(&model), &fake(&model), &options).unwrap();
    let options = SessionOptions { context: Some(100), ..SessionOptions::default() };
    let mut other = open(SessionOptions { kv_type: KvType::Q8_0, ..options.clone() });
    let error = refused(&model, &mut other, &path);
    assert_eq!(error, format!("{shown}: the storage of keys and values is f16, expected q8_0"));
    let mut other = open(SessionOptions { activations: Activations::Int8, ..options.clone() });
    let error = refused(&model, &mut other, &path);
    assert_eq!(error, format!("{shown}: the rounding of activations is auto, expected int8"));
    let mut other = open(SessionOptions { context: Some(29), ..options.clone() });
    let error = refused(&model, &mut other, &path);
    assert_eq!(error, format!("{shown}: it holds {} tokens, the context holds 29", tokens.len()));

    // As of another model, of another shape, or with a token that is none, by somebody who knows the format.
    let whole = std::fs::read(&path).unwrap();
    let mut session = open(options);
    for (place, what) in [
        (40, "the hash of the model it was made with is "),
        (72, "the hash of the rotations for its context is "),
        (FIXED_BYTES, "the shape of layer 0 is "),
    ] {
        let mut bytes = whole.clone();
        bytes[place] ^= 3;
        let error = refused(&model, &mut session, &folder.with("foreign", &resealed(bytes)));
        assert!(error.contains(what) && error.contains(", expected "), "{error}");
    }
    let mut bytes = whole.clone();
    let first_token = FIXED_BYTES + 16 * model.graph().kv_layers().len();
    bytes[first_token..first_token + 4].copy_from_slice(&u32::MAX.to_le_bytes());
    let error = refused(&model, &mut session, &folder.with("foreign", &resealed(bytes)));
    assert!(error.contains("token 0 is 4294967295, the model has "), "{error}");
    for (place, name) in [(12, "kv"), (16, "activations")] {
        let mut bytes = whole.clone();
        bytes[place] = 9;
        let error = refused(&model, &mut session, &folder.with(name, &resealed(bytes)));
        assert!(error.ends_with("the checksum of the head is wrong: the file is damaged"), "{error}");
    }
    assert!(session.restore(&path).is_ok(), "the file itself is right");
}

#[test]
fn what_is_no_file_is_refused_without_waiting() {
    let (model, folder) = (model(), Folder::new("no-file"));
    let mut session = session(&model, 200);
    let error = refused(&model, &mut session, &folder.file("."));
    assert!(error.ends_with("cannot open it: it is not a plain file"), "{error}");
    let error = refused(&model, &mut session, &folder.file("nothing"));
    assert!(error.contains("nothing: cannot open it: "), "{error}");
    let error = session.save(&folder.file("."), b"").unwrap_err().to_string();
    assert!(error.contains("it is a folder"), "{error}");
    let error = session.save(&folder.file("nowhere/file"), b"").unwrap_err().to_string();
    assert!(error.contains("cannot create it"), "{error}");
    let error = session.save(&folder.file("file"), &vec![0; MOST_NOTE_BYTES + 1]).unwrap_err();
    assert!(matches!(error, SessionFileError::NoteTooLong { .. }) && !folder.file("file").exists(), "{error}");
    assert_eq!(std::fs::read_dir(&folder.0).unwrap().count(), 0, "nothing is left behind");
}

#[cfg(unix)]
#[test]
fn only_its_owner_may_read_a_session_file() {
    use std::os::unix::fs::PermissionsExt;
    let (model, folder) = (model(), Folder::new("private"));
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let before = folder.with("saved", b"something public");
    std::fs::set_permissions(&before, std::fs::Permissions::from_mode(0o644)).unwrap();
    let (path, _) = saved(&model, &folder);
    assert_eq!((path.as_path(), mode(&path)), (before.as_path(), 0o600));
    std::fs::remove_file(&path).unwrap();
    assert_eq!(mode(&saved(&model, &folder).0), 0o600);
    assert_eq!(std::fs::read_dir(&folder.0).unwrap().count(), 1, "nothing is left beside it");
}

#[test]
fn what_changes_between_the_check_and_the_use_is_found() {
    let (model, folder) = (model(), Folder::new("race"));
    let (path, tokens) = saved(&model, &folder);
    let mut session = session(&model, 200);
    let origin = Origin::of(&model, KvType::F16, Activations::Auto).unwrap();
    let mut reader = Reader::open(&path, &origin, &image(), 200, model.graph().n_vocab()).unwrap();
    let mut whole = std::fs::read(&path).unwrap();
    let place = whole.len() - SUM_BYTES - 1;
    whole[place] ^= 1;
    std::fs::write(&path, &whole).unwrap();
    let mut n_bytes = 0;
    let error = reader.read(&mut |_, piece| {
        n_bytes += piece.len();
        Ok(())
    });
    assert!(matches!(error, Err(SessionFileError::Checksum { part: "keys and values", .. })));
    assert_eq!(n_bytes, tokens.len() * image().token_bytes());
    assert!(session.restore(&path).is_err());
}

/// Of the device of these tests.
fn image() -> ImageShape {
    ImageShape::new([(None, size_of::<u32>())])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whoever makes a file gets an error or tokens, never a panic or memory without bound.
    #[test]
    fn no_head_does_harm(
        numbers in prop::collection::vec((0_usize..FIXED_BYTES / 4, any::<u32>()), 1..4),
        is_sealed in any::<bool>(),
        len in 0_usize..4000,
    ) {
        let (model, folder) = (model(), Folder::new("harm"));
        let (path, _) = saved(&model, &folder);
        let mut bytes = std::fs::read(&path).unwrap();
        for (place, number) in numbers {
            // Small numbers are as likely as large ones.
            let number = number >> (number % 32);
            bytes[4 * place..][..4].copy_from_slice(&number.to_le_bytes());
        }
        let number = |at: usize| u64::from(u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()));
        if is_sealed && number(20) * 16 + number(24) * 4 + number(28) < (bytes.len() - FIXED_BYTES - 2 * SUM_BYTES) as u64 {
            bytes = resealed(bytes);
        } else {
            bytes.resize(len, 0);
        }
        let mut session = session(&model, 200);
        let is_restored = session.restore(&folder.with("made", &bytes)).is_ok();
        prop_assert_eq!(is_restored, !session.cached().is_empty());
    }
}
