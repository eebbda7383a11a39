//! Texts that are copied to files and back while others are answered.

use super::hold::{Copied, Copy};
use super::tests::{Bench, greedy, only, options, prompt};
use super::*;
use crate::engine::fake::{expected, fake};
use crate::engine::handle::Engine;
use crate::engine::options::EngineOptions;
use crate::engine::session_file::tests::Folder;

fn engine(model: &Arc<Model>, options: &EngineOptions) -> Engine {
    Engine::open(Arc::clone(model), Arc::new(fake(model)), options).unwrap()
}

fn answer(engine: &Engine, prompt: &[u32], n_tokens: usize) -> crate::engine::Generated {
    only(engine.submit(&greedy(prompt, n_tokens)).unwrap())
}

#[test]
fn what_one_engine_saved_another_goes_on_from() {
    let (model, folder) = (Arc::new(Model::pocket().unwrap()), Folder::new("engine"));
    let path = folder.file("kitchen");
    let first = engine(&model, &options());
    let text = prompt(&model, 1, 50);
    let said = [&text[..], &answer(&first, &text, 10).ids].concat();
    let next = [&said[..], &prompt(&model, 2, 7)].concat();
    assert_eq!(first.save(&next, &path, b"a note").unwrap(), 59, "the last token of an answer was never run");
    assert!(matches!(
        first.save(&prompt(&model, 3, 50), &path, b""),
        Err(SessionFileError::NotCached { least: prefixes::BLOCK })
    ));

    let second = engine(&model, &options());
    let restored = second.restore(&path).unwrap();
    assert_eq!((restored.tokens.as_slice(), restored.note.as_slice()), (&said[..59], &b"a note"[..]));
    assert_eq!(second.metrics().cached_prefixes, 1);
    let generated = answer(&second, &next, 12);
    assert_eq!((generated.timings.cached_tokens, generated.ids), (59, expected(&model, &next, 12)));

    // A session reads it as well.
    let mut session = crate::engine::session::tests::open(&model, &fake(&model), 200, 16);
    assert_eq!(session.restore(&path).unwrap(), restored);

    let keeps_none = engine(&model, &EngineOptions { max_cached: 0, ..options() });
    assert!(matches!(keeps_none.restore(&path), Err(SessionFileError::NotKept { tokens: 59, .. })));
    assert!(second.drain(Duration::ZERO));
    assert!(matches!(second.restore(&path), Err(SessionFileError::Closed)));
    assert!(matches!(second.save(&next, &path, b""), Err(SessionFileError::Closed)));
}

#[test]
fn a_text_is_saved_while_it_is_written_and_others_are_answered() {
    let mut bench = Bench::new(&options());
    let texts: Vec<Vec<u32>> = (0..2).map(|salt| prompt(&bench.model, salt, 40)).collect();
    let streams: Vec<_> = texts.iter().map(|text| bench.submit(&greedy(text, 30))).collect();
    bench.turns(9);
    let folder = Folder::new("running");
    let engine = bench.engine.clone();
    let (text, path) = (texts[0].clone(), folder.file("saved"));
    let saving = std::thread::spawn(move || engine.save(&text, &path, b"").unwrap());
    while !saving.is_finished() {
        bench.owner.turn();
    }
    assert_eq!(saving.join().unwrap(), 40);
    bench.settle();
    for (text, stream) in texts.iter().zip(streams) {
        assert_eq!(only(stream).ids, expected(&bench.model, text, 30));
    }
    assert_eq!(bench.owner.held, None);
    bench.assert_at_rest();
}

#[test]
fn what_is_copied_gives_way_after_cached_prefixes_and_before_what_runs() {
    // Seven pages.
    let mut bench = Bench::new(&EngineOptions { context: Some(200), kv_tokens: Some(224), ..options() });
    let text = prompt(&bench.model, 1, 60);
    let stream = bench.submit(&greedy(&text, 1));
    bench.settle();
    drop(stream);
    assert!(matches!(bench.owner.copy(Copy::In(90)), Ok(Copied::Begun { n_tokens: 90 })));
    let bytes: Vec<u8> = text.iter().flat_map(|token| token.to_le_bytes()).collect();
    let append = || Copy::Append { n_tokens: 90, n_positions: 60, piece: bytes.clone() };
    assert!(matches!(bench.owner.copy(append()), Ok(Copied::Piece(_))));
    let mut streams = vec![(text.clone(), bench.submit(&greedy(&text, 20)))];
    bench.turns(2);
    assert!(bench.owner.held.is_some(), "there is room for both");
    let long = prompt(&bench.model, 2, 150);
    streams.push((long.clone(), bench.submit(&greedy(&long, 40))));
    bench.settle();
    assert!(matches!(bench.owner.copy(append()), Err(SessionFileError::GaveWay)));
    assert!(matches!(bench.owner.copy(Copy::Keep(text)), Err(SessionFileError::GaveWay)));
    for (prompt, stream) in streams {
        let n = if prompt == long { 40 } else { 20 };
        assert_eq!(only(stream).ids, expected(&bench.model, &prompt, n));
    }
    assert!(matches!(bench.owner.copy(Copy::In(300)), Err(SessionFileError::NoRoom { tokens: 300 })));
    bench.assert_at_rest();
}

#[test]
fn one_text_is_copied_at_a_time_and_an_end_frees_it() {
    let mut bench = Bench::new(&options());
    let folder = Folder::new("busy");
    let (engine, text) = (bench.engine.clone(), prompt(&bench.model, 1, 40));
    let stream = bench.submit(&greedy(&text, 1));
    bench.settle();
    drop(stream);
    let path = folder.file("saved");
    let saving = std::thread::spawn({
        let (engine, text, path) = (engine.clone(), text.clone(), path.clone());
        move || engine.save(&text, &path, b"")
    });
    // The owner takes no turn: the first waits for it, the second is told.
    while bench.owner.orders.is_empty() && !saving.is_finished() {
        std::thread::yield_now();
    }
    assert!(matches!(engine.save(&text, &path, b""), Err(SessionFileError::Busy)));
    while !saving.is_finished() {
        bench.owner.turn();
    }
    assert_eq!(saving.join().unwrap().unwrap(), 40);
    assert!(matches!(bench.owner.copy(Copy::Out(text)), Ok(Copied::Begun { n_tokens: 40 })));
    bench.owner.end();
    assert_eq!((bench.owner.held, bench.owner.plan.kv().free_tokens()), (None, bench.owner.metrics.kv_tokens));
}
