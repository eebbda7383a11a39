//! Any bytes as a session file, as they are and with checksums that fit: refused with a short message, or the session has
//! as many tokens as the file says and a step goes on from them or fails in order.

#![no_main]

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::{LazyLock, Mutex};

use farpost::engine::{GenerateOptions, Sampling, Session};
use farpost_fuzz::with_sums;
use libfuzzer_sys::fuzz_target;

static STATE: LazyLock<(Mutex<Session>, PathBuf)> = LazyLock::new(|| {
    let path = std::env::temp_dir().join(format!("farpost-fuzz-session-{}", std::process::id()));
    (Mutex::new(farpost_fuzz::session()), path)
});

fuzz_target!(|bytes: &[u8]| {
    let (session, path) = &*STATE;
    let mut session = session.lock().expect("nothing panicked before");
    for bytes in [bytes.to_vec(), with_sums(bytes)] {
        std::fs::write(path, &bytes).expect("there is room for a file");
        let before = session.cached().len();
        match session.restore(path) {
            Ok(restored) => {
                assert_eq!(session.cached(), restored.tokens);
                let prompt = [restored.tokens.as_slice(), &[65]].concat();
                let options = GenerateOptions { sampling: Sampling::greedy(), max_tokens: Some(1), ..GenerateOptions::default() };
                // Keys and values may be anything; what comes of them is an answer or an error.
                let _ = session.generate(&prompt, &options, &mut |_| ControlFlow::Continue(()));
            }
            Err(error) => {
                assert_eq!(session.cached().len(), before, "what is refused changes nothing");
                let error = error.to_string();
                assert!(error.len() < 1000 + path.as_os_str().len(), "{error}");
            }
        }
    }
});
