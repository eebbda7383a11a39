//! Listening, connections, and how they end: each has its limits, and all end in good order when the server is to stop.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::task::Poll;
use std::time::Duration;

use axum::Router;
use axum::middleware::from_fn_with_state;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::{Notify, Semaphore, mpsc, watch};
use tokio_rustls::TlsAcceptor;

use super::app::App;
use super::catalogue::{Hosted, Served};
use super::courteous::Courteous;
use super::error::Problem;
use super::framing::MOST_HEAD;
use super::guard::{self, Ends};
use super::options::{ServerError, ServerOptions};
use super::patient::Patient;
use super::rewound::Rewound;
use super::{admin, health, http2, page, tls, wire};
use crate::engine::Models;

/// Header fields of a request, at most.
const MOST_HEADERS: usize = 64;
/// Threads of connections: the models have the processors, and connections wait most of the time.
const WORKERS: usize = 2;
/// What has been answered may take so long to be sent when all else is done.
const LAST_WRITES: Duration = Duration::from_secs(5);

/// A server that listens and is not run yet.
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    app: Arc<App>,
    handle: Handle,
}

/// Tells a server what to do, from any thread.
#[derive(Clone)]
pub struct Handle {
    stop: watch::Sender<bool>,
    refresh: Arc<Notify>,
    app: Weak<App>,
}

impl std::fmt::Debug for Handle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Handle").field("is_stopped", &*self.stop.borrow()).finish_non_exhaustive()
    }
}

impl Handle {
    /// No more requests are taken, which those who ask are told; what runs goes on for a while.
    pub fn stop(&self) {
        self.stop.send_replace(true);
    }

    /// False if the server is stuck: there is work and no step, or connections are not looked after. True while models
    /// are loaded.
    pub fn is_well(&self) -> bool {
        self.app.upgrade().is_none_or(|app| app.is_well())
    }

    /// Reads keys and certificates again. What can't be used is logged, and what was read before stays.
    pub fn reload(&self) {
        self.refresh.notify_one();
    }
}

impl Server {
    /// Checks the settings and begins to listen. `models` opens those that are `served` by their names.
    ///
    /// # Errors
    /// See [`ServerError`].
    pub fn bind(options: ServerOptions, models: Models, served: Vec<Served>) -> Result<Self, ServerError> {
        let app = App::new(options, models, served)?;
        let wanted = app.options.address;
        let bound = TcpListener::bind(wanted).and_then(|listener| {
            listener.set_nonblocking(true)?;
            let address = listener.local_addr()?;
            Ok((listener, address))
        });
        let (listener, address) = bound.map_err(|source| ServerError::Bind { address: wanted, source })?;
        let app = Arc::new(app);
        let handle = Handle { stop: watch::Sender::new(false), refresh: Arc::default(), app: Arc::downgrade(&app) };
        Ok(Self { listener, address, app, handle })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Tells it what to do.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Loads the models that are wanted at the start and serves, until it is told to stop and all is done. `ready` is
    /// called when they are loaded.
    ///
    /// # Errors
    /// A model of the start that can't be loaded or gives no answer; threads that can't be started.
    pub fn run(self, ready: impl FnOnce() + Send) -> Result<(), ServerError> {
        let Self { listener, app, handle: Handle { stop, refresh, .. }, .. } = self;
        check_threads(WORKERS + 2)?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(WORKERS)
            .thread_name("farpost-server")
            .enable_io()
            .enable_time()
            .build()?;
        let stopped = stop.subscribe();
        std::thread::scope(|scope| {
            let loader = std::thread::Builder::new().name("farpost-load".to_owned()).spawn_scoped(scope, || {
                // Without its loader a server would wait for ever.
                let _stops = StopAtEnd(&stop);
                let ready = || {
                    app.set_loaded();
                    ready();
                };
                app.catalogue.work(&app, ready)
            })?;
            runtime.spawn(watch(Arc::clone(&app), refresh));
            let teller = runtime.spawn(tell(Arc::clone(&app)));
            let served = runtime.block_on(async {
                let served = accept(listener, Arc::clone(&app), stopped).await;
                if let Some(otlp) = &app.otlp {
                    otlp.end();
                }
                // It ends, though a collector does not answer.
                let _ = teller.await;
                served
            });
            let loaded = loader.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            loaded.and(Ok(served?))
        })
    }
}

/// Whether the system starts so many threads: where it does not, the runtime of connections panics and may never end.
fn check_threads(n_threads: usize) -> std::io::Result<()> {
    let (go_on, gate) = std::sync::mpsc::channel::<()>();
    let gate = std::sync::Mutex::new(gate);
    std::thread::scope(|scope| {
        // They end when there is nobody to tell them anything, also if one can't be started.
        let go_on = go_on;
        for _ in 0..n_threads {
            let wait = || gate.lock().map(|gate| gate.recv()).is_ok();
            std::thread::Builder::new().spawn_scoped(scope, wait)?;
        }
        drop(go_on);
        Ok(())
    })
}

/// Stops the server when its loader ends, in whatever way.
struct StopAtEnd<'s>(&'s watch::Sender<bool>);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.send_replace(true);
    }
}

fn router(app: &Arc<App>) -> Router {
    let routes = wire::or_refuse(wire::routes().merge(health::routes()).merge(admin::routes()).merge(page::routes()));
    routes.layer(from_fn_with_state(Arc::clone(app), guard::guard)).with_state(Arc::clone(app))
}

async fn accept(listener: TcpListener, app: Arc<App>, mut stopped: watch::Receiver<bool>) -> std::io::Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let over = watch::Sender::new(false);
    // Closed when the last connection has dropped its end.
    let (open, mut all_closed) = mpsc::channel::<()>(1);
    {
        let mut taking = pin!(take(&listener, &app, over.subscribe(), open));
        unless(stopped.wait_for(|stopped| *stopped), taking.as_mut()).await;
        app.drain();
        // Whoever comes now is told so, and that this server is not ready.
        unless(finish(&app), taking.as_mut()).await;
        over.send_replace(true);
        taking.await;
    }
    drop(listener);
    // What is written still has to reach its reader.
    let _ = tokio::time::timeout(LAST_WRITES, all_closed.recv()).await;
    Ok(())
}

/// Takes connections until all is over.
async fn take(
    listener: &tokio::net::TcpListener,
    app: &Arc<App>,
    mut over: watch::Receiver<bool>,
    open: mpsc::Sender<()>,
) {
    let places = Arc::new(Semaphore::new(app.options.max_connections));
    // A connection of HTTP/2 has many requests; all of them together are no more than there may be connections.
    let streams = Arc::new(Semaphore::new(app.options.max_connections));
    let peers = Arc::new(Peers::default());
    let router = router(app);
    let connections = over.clone();
    loop {
        let next = async {
            let place = Arc::clone(&places).acquire_owned().await;
            (place, listener.accept().await)
        };
        let is_over = over.wait_for(|over| *over);
        let Some((place, accepted)) = unless(is_over, next).await else { break };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Too many files are open, or the client is gone already; neither ends the server.
                if !matches!(error.kind(), std::io::ErrorKind::ConnectionAborted | std::io::ErrorKind::ConnectionReset)
                {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                continue;
            }
        };
        let Some(seat) = Peers::seat(&peers, peer.ip(), app.options.max_connections_per_address) else {
            // Nobody waits for its reader. In TLS no word can be said yet.
            let refusal = app.refuse_unread(&Problem::TooManyConnections);
            if app.tls.is_none() {
                let _ = stream.try_write(&refusal);
            }
            continue;
        };
        let connection = Connection {
            app: Arc::clone(app),
            router: router.clone(),
            streams: Arc::clone(&streams),
            over: connections.clone(),
        };
        let open = open.clone();
        tokio::spawn(async move {
            connection.run(stream, peer).await;
            drop((place, seat, open));
        });
    }
}

/// How many connections there are, by the address they come from.
#[derive(Default)]
struct Peers(Mutex<HashMap<IpAddr, usize>>);

/// The place of one connection among those of its address.
struct Seat {
    peers: Arc<Peers>,
    address: IpAddr,
}

impl Peers {
    /// A place, if there are less than `most` from this address.
    fn seat(peers: &Arc<Self>, address: IpAddr, most: usize) -> Option<Seat> {
        let address = address.to_canonical();
        let mut counts = peers.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(address).or_default();
        (*count < most).then(|| {
            *count += 1;
            Seat { peers: Arc::clone(peers), address }
        })
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut counts = self.peers.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.address);
            }
        }
    }
}

/// Waits until the engines have done what they have taken, or their time is over.
async fn finish(app: &Arc<App>) {
    let most = app.options.drain_timeout;
    let drain = |hosted: Arc<Hosted>| tokio::task::spawn_blocking(move || hosted.engine.drain(most));
    let drained: Vec<_> = app.catalogue.hosted().map(drain).collect();
    for engine in drained {
        // A panic of it would have been caught by the engine.
        let _ = engine.await;
    }
}

/// Sends traces and metrics, where that is wanted.
async fn tell(app: Arc<App>) {
    if let Some(otlp) = &app.otlp {
        otlp.work(&app).await;
    }
}

/// Reads files of settings again when they change, or when told to.
async fn watch(app: Arc<App>, refresh: Arc<Notify>) {
    loop {
        let told = tokio::time::timeout(app.options.watch_interval, refresh.notified()).await.is_ok();
        app.beat();
        let app = Arc::clone(&app);
        // A panic of it is logged as all are, and the next turn comes.
        if let Ok(refreshing) = super::aside(move || app.refresh(told)) {
            let _ = refreshing.await;
        }
    }
}

/// What a connection needs of the server.
struct Connection {
    app: Arc<App>,
    router: Router,
    /// Places for requests of HTTP/2.
    streams: Arc<Semaphore>,
    /// All is done.
    over: watch::Receiver<bool>,
}

impl Connection {
    async fn run(mut self, stream: TcpStream, peer: SocketAddr) {
        // Tokens are small, and each is waited for.
        let _ = stream.set_nodelay(true);
        let Ok(local) = stream.local_addr() else { return };
        let Some(tls) = &self.app.tls else {
            let begins = tokio::time::timeout(self.app.options.head_timeout, http2::begins(&stream));
            let stop = self.over.wait_for(|over| *over);
            // One that ends, idles or breaks before it has said anything has nothing to be answered.
            let Some(Ok(Ok((is_http2, first)))) = unless(stop, begins).await else { return };
            let ends = Ends { local, peer, certificate: None };
            return self.serve(Rewound::new(first, stream), ends, is_http2).await;
        };
        // What was read last; connections that are open keep what they began with.
        let handshake = TlsAcceptor::from(tls.get()).accept(stream);
        let handshake = tokio::time::timeout(self.app.options.head_timeout, handshake);
        let is_over = self.over.wait_for(|over| *over);
        match unless(is_over, handshake).await {
            Some(Ok(Ok(stream))) => {
                let certificates = stream.get_ref().1.peer_certificates();
                let certificate = certificates.and_then(|chain| chain.first()).map(tls::caller_id);
                let is_http2 = stream.get_ref().1.alpn_protocol() == Some(tls::HTTP2);
                self.serve(stream, Ends { local, peer, certificate }, is_http2).await;
            }
            Some(Ok(Err(error))) => self.app.log_handshake(peer, &tls::why(&error.to_string())),
            Some(Err(_)) => self.app.log_handshake(peer, "it took too long"),
            None => {}
        }
    }

    async fn serve(mut self, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, ends: Ends, is_http2: bool) {
        let Self { router, app, streams, .. } = self;
        let router = TowerToHyperService::new(router);
        let answer = move |mut request: hyper::Request<Incoming>| {
            request.extensions_mut().insert(ends.clone());
            router.call(request)
        };
        let patient = Patient::new(TokioIo::new(stream), app.options.write_timeout);
        let stop = self.over.wait_for(|over| *over);
        if is_http2 {
            return http2::serve(patient, &app.options, streams, stop, answer).await;
        }
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new())
            .header_read_timeout(app.options.idle_timeout)
            .max_buf_size(MOST_HEAD)
            .max_headers(MOST_HEADERS);
        let head_timeout = app.options.head_timeout;
        let refuse = move |status| app.refuse_unread(&Problem::Head { status });
        let connection = http.serve_connection(Courteous::new(patient, head_timeout, refuse), service_fn(answer));
        let mut connection = pin!(connection);
        // What goes wrong on a connection is its client's to see.
        if unless(stop, connection.as_mut()).await.is_none() {
            connection.as_mut().graceful_shutdown();
            let _ = connection.await;
        }
    }
}

/// What `work` gives, unless `stop` is done before.
pub(super) async fn unless<T>(stop: impl Future, work: impl Future<Output = T>) -> Option<T> {
    let (mut stop, mut work) = (pin!(stop), pin!(work));
    std::future::poll_fn(|context| match stop.as_mut().poll(context) {
        Poll::Ready(_) => Poll::Ready(None),
        Poll::Pending => work.as_mut().poll(context).map(Some),
    })
    .await
}
