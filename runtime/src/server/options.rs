//! How a server listens, whom it serves and what it bears; checked before it starts.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use tokio::sync::Semaphore;

use super::otlp::OtlpOptions;
use super::tls::TlsFiles;
use crate::engine::LoadError;

/// Settings of a [`super::Server`].
#[derive(Clone, Debug)]
pub struct ServerOptions {
    /// Where to listen; port 0 takes a free one. By default 127.0.0.1, port 8080.
    pub address: SocketAddr,
    /// Listen on an address that other machines reach, though no keys are asked for.
    pub is_open: bool,
    /// The file that says who may ask for what, see `docs/server.md`; `None` asks for no keys.
    pub keys: Option<PathBuf>,
    /// Serve HTTPS only, with these.
    pub tls: Option<TlsFiles>,
    /// How often to look whether files of settings have changed.
    pub watch_interval: Duration,
    /// All callers share what their prompts begin with; else only requests of the same key or certificate do, and how soon
    /// an answer begins tells nobody what others have asked.
    pub shares_prefixes: bool,
    /// Names by which clients may call this server in their Host header, beside loopback and its own addresses.
    pub hosts: Vec<String>,
    /// Origins, such as `https://example.org`, whose pages may ask, beside those of this server itself.
    pub origins: Vec<String>,
    /// Bytes of a request's body, at most.
    pub max_body_bytes: usize,
    /// Connections at once, at most; further ones wait.
    pub max_connections: usize,
    /// Of these, from one address; further ones are refused.
    pub max_connections_per_address: usize,
    /// Within this time the head of a request must be there.
    pub head_timeout: Duration,
    /// A connection on which no further request comes for so long is closed.
    pub idle_timeout: Duration,
    /// Within this time its body must be there.
    pub body_timeout: Duration,
    /// A client that takes nothing for so long is gone.
    pub write_timeout: Duration,
    /// Silence on a stream that has not begun, until a comment says that it lives.
    pub ping_interval: Duration,
    /// After this time without a step, though there is work, the server is not ready.
    pub stall_timeout: Duration,
    /// A request for a model that is not loaded waits for so long, and one for a stream no longer than the
    /// `ping_interval`; then it is told to come again, and at once where loading takes longer as far as is known.
    pub load_wait: Duration,
    /// When it is told to stop, what runs may go on for so long.
    pub drain_timeout: Duration,
    /// Where to send traces and metrics, if anywhere.
    pub otlp: Option<OtlpOptions>,
    /// Log lines as JSON objects.
    pub logs_json: bool,
    /// Log no requests, only what goes wrong.
    pub is_quiet: bool,
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self {
            address: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8080),
            is_open: false,
            keys: None,
            tls: None,
            watch_interval: Duration::from_secs(2),
            shares_prefixes: false,
            hosts: Vec::new(),
            origins: Vec::new(),
            max_body_bytes: 8 << 20,
            max_connections: 512,
            max_connections_per_address: 256,
            head_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(60),
            body_timeout: Duration::from_secs(30),
            write_timeout: Duration::from_secs(30),
            ping_interval: Duration::from_secs(10),
            stall_timeout: Duration::from_secs(60),
            load_wait: Duration::from_secs(25),
            drain_timeout: Duration::from_secs(30),
            otlp: None,
            logs_json: false,
            is_quiet: false,
        }
    }
}

/// Why a server does not start.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// Other machines could reach it, and it would ask nobody for a key or a certificate.
    #[error("{address} is reached from other machines, and no keys are asked for")]
    Exposed {
        /// The address.
        address: SocketAddr,
    },
    /// The address can't be listened on.
    #[error("cannot listen on {address}: {source}")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// A file of settings that can't be used.
    #[error("{}: {problem}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, and what was expected.
        problem: String,
    },
    /// An origin that is none.
    #[error("{origin:?} is no origin, expected one such as https://example.org")]
    Origin {
        /// As it was given.
        origin: String,
    },
    /// A setting out of its range.
    #[error("{setting} is {found}, expected {expected}")]
    OutOfRange {
        /// Its name.
        setting: &'static str,
        /// What it is.
        found: String,
        /// What it may be.
        expected: &'static str,
    },
    /// A collector that is reached by HTTPS only.
    #[error("the collector is at https://{authority}, expected http://HOST:PORT: HTTPS is not spoken to collectors")]
    Collector {
        /// Its host and port.
        authority: String,
    },
    /// A name of this server that is none.
    #[error("{name:?} is no name of a host, expected one such as farpost.lan, without a port")]
    HostName {
        /// As it was given.
        name: String,
    },
    /// Threads could not be started, or the network not be used.
    #[error("cannot run the server: {0}")]
    System(#[from] std::io::Error),
    /// A model without a name, or two of one.
    #[error("{name:?} is no name for a model or that of two, expected a name for each, without '/', '\\' or '..'")]
    Name {
        /// The name.
        name: String,
    },
    /// A model could not be loaded.
    #[error("model {name:?}: {source}")]
    Load {
        /// Its name.
        name: String,
        /// Why.
        source: Box<LoadError>,
    },
    /// A model gave no answer when it was tried.
    #[error("model {name:?} does not answer: {reason}")]
    Trial {
        /// Its name.
        name: String,
        /// What it said instead.
        reason: String,
    },
}

/// Clocks add times to the present: none may be longer.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 60 * 60);
/// What is done again and again leaves time for other things.
const SHORTEST: Duration = Duration::from_millis(1);

impl ServerOptions {
    fn check_ranges(&self) -> Result<(), ServerError> {
        let refuse = |setting, found: String, expected| Err(ServerError::OutOfRange { setting, found, expected });
        let intervals = [("watch_interval", self.watch_interval), ("ping_interval", self.ping_interval)];
        if let Some((setting, time)) = intervals.into_iter().find(|(_, time)| *time < SHORTEST) {
            return refuse(setting, format!("{time:?}"), "1 ms or more");
        }
        let times = [
            ("head_timeout", self.head_timeout),
            ("idle_timeout", self.idle_timeout),
            ("body_timeout", self.body_timeout),
            ("write_timeout", self.write_timeout),
            ("stall_timeout", self.stall_timeout),
            ("load_wait", self.load_wait),
            ("drain_timeout", self.drain_timeout),
        ];
        if let Some((setting, time)) = intervals.into_iter().chain(times).find(|(_, time)| *time > LONGEST) {
            return refuse(setting, format!("{time:?}"), "a year or less");
        }
        let counts = [
            ("max_connections", self.max_connections),
            ("max_connections_per_address", self.max_connections_per_address),
        ];
        match counts.into_iter().find(|(_, n)| !(1..=Semaphore::MAX_PERMITS).contains(n)) {
            Some((setting, n)) => refuse(setting, n.to_string(), "1 or more, and no more than can be counted"),
            None => Ok(()),
        }
    }

    pub(super) fn check(&self) -> Result<(), ServerError> {
        self.check_ranges()?;
        let asks_for_certificates = self.tls.as_ref().is_some_and(|tls| tls.client_ca.is_some());
        if !self.address.ip().is_loopback() && self.keys.is_none() && !asks_for_certificates && !self.is_open {
            return Err(ServerError::Exposed { address: self.address });
        }
        let is_origin = |origin: &str| {
            let host = origin.strip_prefix("https://").or_else(|| origin.strip_prefix("http://"));
            host.is_some_and(|host| !host.is_empty() && !host.contains('/'))
        };
        if let Some(otlp) = self.otlp.as_ref().filter(|otlp| otlp.endpoint.is_https()) {
            return Err(ServerError::Collector { authority: otlp.endpoint.authority() });
        }
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        let is_host = |name: &str| {
            let address = name.trim_start_matches('[').trim_end_matches(']');
            (!name.is_empty() && name.chars().all(is_plain)) || address.parse::<IpAddr>().is_ok()
        };
        if let Some(name) = self.hosts.iter().find(|name| !is_host(name)) {
            return Err(ServerError::HostName { name: name.clone() });
        }
        match self.origins.iter().find(|origin| !is_origin(origin)) {
            Some(origin) => Err(ServerError::Origin { origin: origin.clone() }),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_machines_are_served_with_keys_or_on_purpose_only() {
        let at = |address: &str, is_open: bool, keys: Option<PathBuf>| {
            ServerOptions { address: address.parse().unwrap(), is_open, keys, ..ServerOptions::default() }.check()
        };
        let with_tls = |client_ca: Option<PathBuf>| {
            let tls = Some(TlsFiles { cert: "cert".into(), key: "key".into(), client_ca });
            ServerOptions { address: ([10, 0, 0, 1], 0).into(), tls, ..ServerOptions::default() }.check()
        };
        assert!(with_tls(None).is_err() && with_tls(Some("ca".into())).is_ok());
        for address in ["127.0.0.1:0", "127.1.2.3:1", "[::1]:80"] {
            assert!(at(address, false, None).is_ok(), "{address}");
        }
        for address in ["0.0.0.0:0", "[::]:80", "192.168.1.2:80", "10.0.0.1:80"] {
            assert!(matches!(at(address, false, None), Err(ServerError::Exposed { .. })), "{address}");
            assert!(at(address, true, None).is_ok() && at(address, false, Some(PathBuf::new())).is_ok());
        }
    }

    #[test]
    fn settings_have_ranges() {
        let plain = ServerOptions::default;
        let (none, long) = (Duration::ZERO, Duration::MAX);
        for (options, setting) in [
            (ServerOptions { ping_interval: none, ..plain() }, "ping_interval"),
            (ServerOptions { watch_interval: none, ..plain() }, "watch_interval"),
            (ServerOptions { drain_timeout: long, ..plain() }, "drain_timeout"),
            (ServerOptions { load_wait: long, ..plain() }, "load_wait"),
            (ServerOptions { ping_interval: long, ..plain() }, "ping_interval"),
            (ServerOptions { max_connections: 0, ..plain() }, "max_connections"),
            (ServerOptions { max_connections: usize::MAX, ..plain() }, "max_connections"),
            (ServerOptions { max_connections_per_address: 0, ..plain() }, "max_connections_per_address"),
        ] {
            let error = options.check().unwrap_err().to_string();
            assert!(error.starts_with(&format!("{setting} is ")), "{error}");
        }
        assert!(ServerOptions { drain_timeout: none, load_wait: none, ..plain() }.check().is_ok());
    }

    #[test]
    fn names_of_hosts_are_checked() {
        let with = |name: &str| ServerOptions { hosts: vec![name.to_owned()], ..ServerOptions::default() }.check();
        for name in ["farpost.lan", "kitchen_1", "10.0.0.7", "::1", "[fe80::1]"] {
            assert!(with(name).is_ok(), "{name}");
        }
        for name in ["*", "a b", "", "farpost.lan:8080", "http://farpost.lan", "a/b"] {
            assert!(matches!(with(name), Err(ServerError::HostName { .. })), "{name}");
        }
    }

    #[test]
    fn origins_are_checked() {
        let with = |origin: &str| ServerOptions { origins: vec![origin.to_owned()], ..ServerOptions::default() };
        assert!(with("https://example.org").check().is_ok() && with("http://localhost:3000").check().is_ok());
        for origin in ["example.org", "*", "https://", "https://example.org/"] {
            assert!(with(origin).check().is_err(), "{origin}");
        }
    }
}
