//! Readiness when the device does not do its work: stuck, and lost.

use std::net::SocketAddr;
use std::sync::{Arc, Condvar, Mutex, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use farpost::engine::{Backends, EngineOptions, Models, ModelsOptions, Opened, Sampling};
use farpost::kernels::backend::{Backend, Batch, DeviceError, DeviceInfo, KvStore, Limits, MemoryUse, Output, Plan};
use farpost::kernels::cpu::Cpu;
use farpost::kernels::fault::Faulty;
use farpost::kernels::graph::Graph;
use farpost::server::{Handle, Served, Server, ServerError, ServerOptions};
use farpost::{Model, ModelOptions};
use serde_json::{Value as Json, json};

use crate::http::{get, post};
use crate::program::PATIENCE;
use crate::streams::wait_until;

/// What the next step does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mood {
    Works,
    /// Until it works again.
    Stuck,
    /// Once.
    Lost,
}

#[derive(Clone)]
struct Moody(Arc<(Mutex<Mood>, Condvar)>);

impl Moody {
    fn set(&self, mood: Mood) {
        *self.0.0.lock().unwrap() = mood;
        self.0.1.notify_all();
    }
}

impl Backend for Moody {
    fn describe(&self) -> DeviceInfo {
        DeviceInfo::default()
    }

    fn self_test(&self) -> Result<(), DeviceError> {
        Ok(())
    }

    fn compile(&self, graph: &Graph, limits: &Limits) -> Result<Box<dyn Plan>, DeviceError> {
        Ok(Box::new(MoodyPlan { plan: Cpu::detect().compile(graph, limits)?, mood: self.clone() }))
    }
}

struct MoodyPlan {
    plan: Box<dyn Plan>,
    mood: Moody,
}

impl Plan for MoodyPlan {
    fn step(&mut self, batch: &Batch, out: &mut Output) -> Result<(), DeviceError> {
        let (mood, changed) = &*self.mood.0;
        let mut mood = changed.wait_while(mood.lock().unwrap(), |mood| *mood == Mood::Stuck).unwrap();
        if std::mem::replace(&mut *mood, Mood::Works) == Mood::Lost {
            return Err(DeviceError::Lost("on cue".to_owned()));
        }
        drop(mood);
        self.plan.step(batch, out)
    }

    fn kv(&mut self) -> &mut dyn KvStore {
        self.plan.kv()
    }

    fn memory(&self) -> MemoryUse {
        self.plan.memory()
    }
}

/// A server of the model `t`, which is ready.
fn start(models: Models) -> (SocketAddr, Handle, JoinHandle<Result<(), ServerError>>) {
    let options = ServerOptions {
        address: ([127, 0, 0, 1], 0).into(),
        is_quiet: true,
        stall_timeout: Duration::from_millis(50),
        ..ServerOptions::default()
    };
    let served = vec![Served::new("t".to_owned(), Sampling::greedy())];
    let server = Server::bind(options, models, served).unwrap();
    let (address, handle) = (server.address(), server.handle());
    let (sender, ready) = mpsc::channel();
    let server = std::thread::spawn(move || server.run(move || sender.send(()).unwrap()));
    ready.recv_timeout(PATIENCE).unwrap();
    (address, handle, server)
}

fn ask(address: SocketAddr) -> Json {
    let request = json!({ "model": "t", "prompt": [5, 6, 7], "max_tokens": 8, "ignore_eos": true });
    post(address, "/v1/completions", &request).json(200)["choices"][0]["text"].clone()
}

#[test]
fn where_a_device_fails_another_answers_and_the_server_tells() {
    let device = Faulty::new(Arc::new(Cpu::detect()), |_, _| None);
    let backends = Backends::from(Arc::new(device.clone())).or(Arc::new(Cpu::detect()));
    let path = farpost_firmware_tests::model("tiny-llama.gguf");
    let open = move |_: &str| Ok(Opened::new(Model::open(&path, &ModelOptions::default())?, EngineOptions::default()));
    let (address, handle, server) = start(Models::new(Box::new(open), backends, ModelsOptions::default()));
    let states = || {
        let version = get(address, "/version").json(200);
        version["backends"].as_array().unwrap().iter().map(|backend| backend["state"].clone()).collect::<Vec<_>>()
    };
    let expected = ask(address);
    assert_eq!(states(), ["ok", "spare"]);
    assert_eq!(get(address, "/readyz").json(200), json!({ "status": "ready" }));
    device.set_gone(true);
    assert_eq!(ask(address), expected);
    assert_eq!(states(), ["failed", "ok"]);
    let ready = get(address, "/readyz").json(200);
    assert_eq!(ready, json!({ "status": "ready", "degraded": ["cpu: device lost: it is gone"] }));
    let page = get(address, "/metrics").body;
    assert!(page.contains("farpost_health{component=\"backend\"} 1\n"), "{page}");
    // It comes back by itself, with nothing to do as well.
    device.set_gone(false);
    wait_until(|| states() == ["ok", "spare"]);
    assert_eq!(ask(address), expected);
    assert_eq!(get(address, "/readyz").json(200), json!({ "status": "ready" }));
    handle.stop();
    server.join().unwrap().unwrap();
}

#[test]
fn a_server_whose_engine_is_stuck_is_not_ready_and_a_lost_device_is_begun_anew() {
    let device = Moody(Arc::new((Mutex::new(Mood::Works), Condvar::new())));
    let path = farpost_firmware_tests::model("tiny-llama.gguf");
    let open = move |_: &str| Ok(Opened::new(Model::open(&path, &ModelOptions::default())?, EngineOptions::default()));
    let models = Models::new(Box::new(open), Arc::new(device.clone()), ModelsOptions::default());
    let (address, handle, server) = start(models);
    let expected = ask(address);
    assert_eq!(get(address, "/readyz").json(200)["status"], "ready");
    device.set(Mood::Stuck);
    let waiting = std::thread::spawn(move || ask(address));
    wait_until(|| get(address, "/readyz").status == 503);
    assert_eq!(get(address, "/readyz").json(503)["status"], "stalled");
    assert!(get(address, "/metrics").body.contains("farpost_health{component=\"server\"} 2\n"));
    // The process lives, and whoever restarts it is told that this would help.
    assert_eq!(get(address, "/healthz").status, 200);
    assert!(!handle.is_well());
    device.set(Mood::Works);
    assert_eq!(waiting.join().unwrap(), expected);
    wait_until(|| get(address, "/readyz").status == 200);
    device.set(Mood::Lost);
    assert_eq!(ask(address), expected);
    assert_eq!(get(address, "/readyz").status, 200);
    assert!(get(address, "/metrics").body.contains("farpost_recovered_total{model=\"t\"} 1\n"));
    handle.stop();
    server.join().unwrap().unwrap();
}
