//! Devices that fail, in every way and at every place: others go on, and nobody who reads an answer can tell.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use farpost_kernels::backend::DeviceError;
use farpost_kernels::fault::{Fault, Faulty};

use super::tests::{Bench, greedy, only, options, prompt};
use super::*;
use crate::engine::failover::Backends;
use crate::engine::fake::{Fake, expected};
use crate::engine::stream::Stream;

fn failing(device: &Fake, cue: impl Fn(usize) -> Option<Fault> + Send + Sync + 'static) -> Faulty {
    Faulty::new(Arc::new(device.clone()), move |step, _| cue(step))
}

/// Which device is used, and why the first was left.
fn standing(bench: &Bench) -> (usize, Option<String>) {
    let states = bench.engine.devices();
    (states.iter().position(|state| state.is_used).unwrap(), states[0].failure.clone())
}

fn check(bench: &mut Bench, what: &str) {
    let prompts: Vec<Vec<u32>> = (0..3).map(|salt| prompt(&bench.model, salt, 5 + 20 * salt)).collect();
    let streams: Vec<Stream> = prompts.iter().map(|prompt| bench.submit(&greedy(prompt, 6))).collect();
    bench.settle();
    for (prompt, stream) in prompts.iter().zip(streams) {
        assert_eq!(only(stream).ids, expected(&bench.model, prompt, 6), "{what}");
    }
    bench.assert_at_rest();
}

#[test]
fn every_kind_of_failure_at_every_step_is_a_pause() {
    for fault in Fault::all() {
        for at in 0..8 {
            let what = format!("{fault:?} in step {at}");
            let fault = fault.clone();
            let mut bench = Bench::on(&options(), |device, _| {
                let first = failing(&device, move |step| (step == at).then(|| fault.clone()));
                Backends::from(Arc::new(first)).or(Arc::new(device))
            });
            check(&mut bench, &what);
            let (used, why) = standing(&bench);
            assert_eq!((used, bench.engine.metrics().recovered), (1, 1), "{what}");
            assert!(why.is_some(), "{what}");
        }
    }
}

#[test]
fn a_device_that_was_left_is_used_again_when_it_passes_its_test() {
    let faulty = Mutex::new(None);
    let mut bench = Bench::on(&options(), |device, _| {
        let first = failing(&device, |_| None);
        *faulty.lock().unwrap() = Some(first.clone());
        Backends::from(Arc::new(first)).or(Arc::new(device))
    });
    let device = faulty.into_inner().unwrap().unwrap();
    let answer = |bench: &mut Bench| {
        let prompt = prompt(&bench.model, 1, 5);
        let stream = bench.submit(&greedy(&prompt, 40));
        bench.settle();
        assert_eq!(only(stream).ids, expected(&bench.model, &prompt, 40));
    };
    device.set_gone(true);
    answer(&mut bench);
    assert_eq!(standing(&bench), (1, Some("device lost: it is gone".to_owned())));
    // The clock goes by steps; a device that is still gone is looked at again later and later.
    (0..60).for_each(|_| answer(&mut bench));
    assert_eq!(standing(&bench).0, 1);
    device.set_gone(false);
    let back = (0..2000).position(|_| {
        answer(&mut bench);
        // Its test has a thread of its own.
        std::thread::sleep(Duration::from_millis(1));
        standing(&bench) == (0, None)
    });
    assert!(back.is_some_and(|n_answers| n_answers > 3), "it waits a while: {back:?}");
    bench.assert_at_rest();
}

#[test]
fn a_device_that_can_not_compile_is_passed_over_at_once() {
    let mut bench = Bench::on(&options(), |device, _| {
        let first = failing(&device, |_| None);
        first.set_gone(true);
        Backends::from(Arc::new(first)).or(Arc::new(device))
    });
    assert_eq!(standing(&bench).0, 1);
    check(&mut bench, "the second from the start");
}

#[test]
fn where_no_device_is_left_requests_fail_with_the_reason_and_later_ones_are_tried() {
    let last = Mutex::new(None);
    let mut bench = Bench::on(&options(), |device, _| {
        let lost = |_| Some(Fault::Before(DeviceError::Lost("on cue".to_owned())));
        let second = failing(&device, |_| None);
        *last.lock().unwrap() = Some(second.clone());
        Backends::from(Arc::new(failing(&device, lost))).or(Arc::new(second))
    });
    let last = last.into_inner().unwrap().unwrap();
    last.set_gone(true);
    let prompt = prompt(&bench.model, 1, 5);
    let lost = bench.submit(&greedy(&prompt, 6));
    bench.settle();
    assert_eq!(lost.finish().unwrap_err().to_string(), "device lost: it is gone");
    last.set_gone(false);
    let next = bench.submit(&greedy(&prompt, 6));
    bench.settle();
    assert_eq!(only(next).ids, expected(&bench.model, &prompt, 6));
    bench.assert_at_rest();
}

/// Devices that fail one after the other, each in a way and a step of its own, before one that does not.
pub(super) fn unreliable(device: &Fake, seed: usize, n_faults: &Arc<AtomicUsize>) -> Backends {
    const N_DEVICES: usize = 6;
    let kinds = Fault::all();
    let nth = |number: usize| {
        let (kinds, n_faults) = (kinds.clone(), Arc::clone(n_faults));
        let hash = (number + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(seed.wrapping_mul(0xBF58_476D)) >> 20;
        let (at, kind) = (hash % 12, hash / 12 % kinds.len());
        failing(device, move |step| {
            let fault = (step % 12 == at).then(|| kinds[kind].clone());
            n_faults.fetch_add(usize::from(fault.is_some()), Ordering::SeqCst);
            fault
        })
    };
    let first = Backends::from(Arc::new(nth(0)));
    let others = (1..N_DEVICES).fold(first, |backends, number| backends.or(Arc::new(nth(number))));
    others.or(Arc::new(device.clone()))
}
