//! `farpost serve`: models over HTTP, until a signal ends it.

mod models;

use std::net::{IpAddr, Ipv4Addr, SocketAddr, ToSocketAddrs as _};
use std::path::PathBuf;
use std::thread::JoinHandle;
use std::time::Duration;

use farpost::engine::LoadError;
use farpost::server::{Endpoint, Handle, OtlpOptions, Server, ServerError, ServerOptions, TlsFiles};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::amount;
use super::console::Console;
use super::exit::{Exit, Failure};

/// Serve models over HTTP, for clients of OpenAI's API
///
/// Without --model the built-in model answers. For example:
/// farpost serve --port 8080
#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(flatten)]
    models: models::ModelsArgs,
    /// The address to listen on, or localhost; other machines reach any but 127.0.0.1 and ::1, and then keys or client
    /// certificates are needed
    #[arg(long, value_name = "ADDRESS", default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST), value_parser = host)]
    host: IpAddr,
    /// The port to listen on; 0 takes a free one
    #[arg(long, value_name = "N", default_value_t = 8080)]
    port: u16,
    /// A JSON file of the keys that are asked for; it holds their hashes, and is read again when it changes or on SIGHUP
    #[arg(long, value_name = "FILE")]
    keys: Option<PathBuf>,
    /// Serve other machines without asking for keys
    #[arg(long, conflicts_with_all = ["keys", "client_ca"])]
    open: bool,
    /// Serve HTTPS with this certificate: a PEM file, its own first; read again when it changes or on SIGHUP
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// The private key of --tls-cert: a PEM file
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// Serve clients only that show a certificate of an authority in this PEM file
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    client_ca: Option<PathBuf>,
    /// Let all keys share what their prompts begin with: less work, but answering times tell what others have asked
    #[arg(long, hide_short_help = true)]
    share_prefixes: bool,
    /// A name of this server that clients may use beside its addresses (may be given several times)
    #[arg(long, value_name = "NAME")]
    allow_host: Vec<String>,
    /// An origin whose pages may ask, such as https://example.org (may be given several times)
    #[arg(long, value_name = "ORIGIN")]
    allow_origin: Vec<String>,
    /// Send traces and metrics to this collector (OTLP over HTTP, in JSON), such as http://localhost:4318
    #[arg(long, value_name = "URL", env = "OTEL_EXPORTER_OTLP_ENDPOINT", hide_env_values = true)]
    otlp_endpoint: Option<Endpoint>,
    /// When told to end, go on with what runs for N seconds at most
    #[arg(long, value_name = "N", default_value_t = 30, value_parser = amount::whole::<u64>(0..=86_400))]
    drain: u64,
}

/// An address, or a name that this machine has for itself. Where another name leads may change, and nobody would see that
/// others reach it.
fn host(text: &str) -> Result<IpAddr, String> {
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    let expected = "expected an IP address, or a name of this machine for itself such as localhost";
    let found = (text, 0).to_socket_addrs().map_err(|error| format!("{expected}: {error}"))?;
    let mut found: Vec<IpAddr> = found.map(|address| address.ip()).collect();
    found.sort();
    match found.first() {
        Some(first) if found.iter().all(IpAddr::is_loopback) => Ok(*first),
        _ => Err(expected.to_owned()),
    }
}

impl From<LoadError> for Failure {
    fn from(error: LoadError) -> Self {
        match error {
            LoadError::Model(error) => error.into(),
            LoadError::Engine(error) => error.into(),
            LoadError::Memory { .. } => {
                Self::new(Exit::Memory, error).hint("a smaller --context, --kv-type q8_0 or a larger --memory-cap")
            }
        }
    }
}

impl From<ServerError> for Failure {
    fn from(error: ServerError) -> Self {
        let error = match error {
            ServerError::Load { source, .. } => return (*source).into(),
            other => other,
        };
        let (exit, hint) = match &error {
            ServerError::Exposed { .. } => (
                Exit::Usage,
                Some("--keys FILE asks for keys, --client-ca FILE for certificates, --open serves everybody"),
            ),
            ServerError::Origin { .. }
            | ServerError::HostName { .. }
            | ServerError::OutOfRange { .. }
            | ServerError::File { .. } => (Exit::Usage, None),
            ServerError::Collector { .. } => {
                (Exit::Usage, Some("a collector on this machine can send it on: --otlp-endpoint http://localhost:4318"))
            }
            ServerError::Name { .. } => (Exit::Usage, Some("--alias gives each model a name of its own")),
            ServerError::Bind { .. } => (Exit::Failed, Some("--port takes another one, or 0 for any that is free")),
            ServerError::System(_) | ServerError::Trial { .. } | ServerError::Load { .. } => (Exit::Failed, None),
        };
        let failure = Self::new(exit, error);
        match hint {
            Some(hint) => failure.hint(hint),
            None => failure,
        }
    }
}

/// Serves until SIGTERM or Ctrl-C, and then until what runs is done.
pub fn run(args: &Args, console: &Console) -> Result<(), Failure> {
    let console = &console.for_log();
    let tls = args.tls_cert.clone().zip(args.tls_key.clone());
    let tls = tls.map(|(cert, key)| TlsFiles { cert, key, client_ca: args.client_ca.clone() });
    let reads_again = args.keys.is_some() || tls.is_some() || is_service();
    let scheme = if tls.is_some() { "https" } else { "http" };
    let options = ServerOptions {
        address: SocketAddr::new(args.host, args.port),
        is_open: args.open,
        keys: args.keys.clone(),
        tls,
        shares_prefixes: args.share_prefixes,
        hosts: args.allow_host.clone(),
        origins: args.allow_origin.clone(),
        otlp: args.otlp_endpoint.clone().map(telemetry).transpose()?,
        drain_timeout: Duration::from_secs(args.drain),
        logs_json: console.is_json(),
        is_quiet: console.is_quiet(),
        ..ServerOptions::default()
    };
    let (models, served) = args.models.models(console)?;
    let server = Server::bind(options, models, served)?;
    let address = server.address();
    let orders = Orders::listen(server.handle(), reads_again)?;
    #[cfg(unix)]
    let watchdog = super::notify::Watchdog::start(server.handle());
    let ready = || {
        console.note(&format!("ready: {scheme}://{address}/v1"));
        #[cfg(unix)]
        super::notify::tell("READY=1");
    };
    console.note(&format!("listening on {scheme}://{address}"));
    let served = server.run(ready);
    #[cfg(unix)]
    drop(watchdog);
    orders.end();
    Ok(served?)
}

/// What a collector is sent, with the settings that OpenTelemetry's programs share.
fn telemetry(endpoint: Endpoint) -> Result<OtlpOptions, Failure> {
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let wrong = |name: &str, expected: &str| Failure::usage(format_args!("{name}: expected {expected}"));
    const HEADERS: &str = "OTEL_EXPORTER_OTLP_HEADERS";
    const INTERVAL: &str = "OTEL_METRIC_EXPORT_INTERVAL";
    let headers = variable(HEADERS).unwrap_or_default();
    let headers = headers.split(',').filter(|entry| !entry.trim().is_empty()).map(|entry| {
        let (name, value) = entry.split_once('=')?;
        Some((name.trim().to_owned(), value.trim().to_owned()))
    });
    let headers: Option<Vec<_>> = headers.collect();
    let interval = variable(INTERVAL).map(|ms| ms.parse().ok().filter(|ms| *ms > 0));
    let interval = interval.unwrap_or(Some(10_000)).ok_or_else(|| wrong(INTERVAL, "milliseconds, 1 or more"))?;
    Ok(OtlpOptions {
        endpoint,
        service_name: variable("OTEL_SERVICE_NAME").unwrap_or_else(|| "farpost".to_owned()),
        headers: headers.ok_or_else(|| wrong(HEADERS, "NAME=VALUE, several with commas between"))?,
        interval: Duration::from_millis(interval),
    })
}

/// Whether systemd runs this: then SIGHUP is its way to have files read again, though there may be none.
fn is_service() -> bool {
    std::env::var_os("NOTIFY_SOCKET").is_some_and(|socket| !socket.is_empty())
}

/// Signals: SIGTERM or SIGINT asks the server to stop in good order, another one ends the program. SIGHUP has it read its
/// files again, where there are any; else it ends the program as it does others.
struct Orders {
    handle: signal_hook::iterator::Handle,
    thread: JoinHandle<()>,
}

impl Orders {
    fn listen(server: Handle, reads_again: bool) -> Result<Self, Failure> {
        let failed = |error: std::io::Error| Failure::system("listen for signals", &error);
        let ends = [SIGINT, SIGTERM];
        let mut signals = Signals::new(ends.iter().chain(reads_again.then_some(&SIGHUP))).map_err(failed)?;
        let handle = signals.handle();
        let thread = std::thread::Builder::new().name("farpost-signals".to_owned()).spawn(move || {
            let mut is_ending = false;
            for signal in signals.forever() {
                match signal {
                    SIGHUP => server.reload(),
                    _ if is_ending => std::process::exit(i32::from(Exit::Interrupted.code())),
                    _ => {
                        is_ending = true;
                        #[cfg(unix)]
                        super::notify::tell("STOPPING=1");
                        server.stop();
                    }
                }
            }
        });
        Ok(Self { handle, thread: thread.map_err(failed)? })
    }

    fn end(self) {
        self.handle.close();
        // It does nothing that could panic.
        let _ = self.thread.join();
    }
}
