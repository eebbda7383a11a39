//! The server that is asked: connections by hyper, kept open from one request to the next.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, Method, Request, StatusCode, header};
use farpost::server::Endpoint;
use hyper::body::{Body as _, Incoming};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use serde_json::Value as Json;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;

/// Servers close connections that idle, and one that is about to be closed is of no use.
const MOST_IDLE: Duration = Duration::from_secs(4);
/// Bytes of an answer that is read as a whole, at most.
const MOST_BYTES: usize = 8 << 20;

/// Why a request was not answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failed {
    /// Under which it is counted: `connect`, `http_429 queue_full`, `timeout`...
    pub kind: String,
    pub message: String,
}

impl Failed {
    pub fn new(kind: impl Into<String>, message: impl std::fmt::Display) -> Self {
        Self { kind: kind.into(), message: message.to_string() }
    }
}

/// A server, and the connections to it that wait for a request.
#[derive(Debug)]
pub struct Target {
    endpoint: Endpoint,
    /// What paths of the protocol begin with, such as `/v1`.
    base: String,
    /// With HTTPS, whom it trusts.
    tls: Option<Arc<ClientConfig>>,
    authorization: Option<HeaderValue>,
    idle: Mutex<Vec<Connection>>,
}

/// What requests go through, plain or encrypted.
trait Socket: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Socket for S {}

/// An open connection. It is closed when this is dropped.
#[derive(Debug)]
struct Connection {
    sender: SendRequest<Body>,
    driver: JoinHandle<()>,
    used: Instant,
}

impl Drop for Connection {
    fn drop(&mut self) {
        // The socket goes with it.
        self.driver.abort();
    }
}

impl Target {
    /// The server at `endpoint`, whose path may or may not end with `/v1`; requests carry the key.
    pub fn new(endpoint: Endpoint, tls: Option<Arc<ClientConfig>>, key: Option<&str>) -> Result<Self, String> {
        let authorization = key.map(|key| HeaderValue::from_str(&format!("Bearer {key}"))).transpose();
        let mut authorization = authorization.map_err(|_| "it has characters that no header takes".to_owned())?;
        if let Some(value) = &mut authorization {
            value.set_sensitive(true);
        }
        let base = format!("{}/v1", endpoint.path().strip_suffix("/v1").unwrap_or(endpoint.path()));
        Ok(Self { endpoint, base, tls, authorization, idle: Mutex::default() })
    }

    /// Posts JSON to a path of the protocol, such as `/completions`.
    pub async fn post(&self, path: &str, body: String) -> Result<Reply<'_>, Failed> {
        self.send(Method::POST, format!("{}{path}", self.base), body).await
    }

    /// Gets a path of the protocol.
    pub async fn get(&self, path: &str) -> Result<Reply<'_>, Failed> {
        self.send(Method::GET, format!("{}{path}", self.base), String::new()).await
    }

    /// Gets a path beside the protocol, such as `/metrics`.
    pub async fn get_beside(&self, path: &str) -> Result<Reply<'_>, Failed> {
        let prefix = self.base.strip_suffix("/v1").unwrap_or_default();
        self.send(Method::GET, format!("{prefix}{path}"), String::new()).await
    }

    async fn send(&self, method: Method, path: String, body: String) -> Result<Reply<'_>, Failed> {
        loop {
            let (mut connection, is_fresh) = match self.kept().await {
                Some(connection) => (connection, false),
                None => (self.connect().await?, true),
            };
            let request = self.request(method.clone(), &path, body.clone())?;
            match connection.sender.send_request(request).await {
                Ok(response) => {
                    let (head, body) = response.into_parts();
                    return Ok(Reply { status: head.status, body, connection: Some(connection), target: self });
                }
                // It was closed just now; nothing was answered on it.
                Err(error)
                    if !is_fresh && (error.is_canceled() || error.is_incomplete_message() || error.is_closed()) => {}
                Err(error) => return Err(Failed::new("connection", told(&error))),
            }
        }
    }

    fn request(&self, method: Method, path: &str, body: String) -> Result<Request<Body>, Failed> {
        let host = HeaderValue::from_str(&self.endpoint.authority());
        let host = host.map_err(|error| Failed::new("connect", error))?;
        let mut request = Request::new(Body::from(body));
        *request.uri_mut() = path.parse().map_err(|error| Failed::new("connect", error))?;
        let headers = request.headers_mut();
        headers.insert(header::HOST, host);
        if method == Method::POST {
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        }
        if let Some(authorization) = &self.authorization {
            headers.insert(header::AUTHORIZATION, authorization.clone());
        }
        *request.method_mut() = method;
        Ok(request)
    }

    /// A connection that waits and is still open.
    async fn kept(&self) -> Option<Connection> {
        loop {
            let mut connection = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop()?;
            if connection.used.elapsed() < MOST_IDLE && connection.sender.ready().await.is_ok() {
                return Some(connection);
            }
        }
    }

    async fn connect(&self) -> Result<Connection, Failed> {
        let failed = |error: &dyn std::error::Error| Failed::new("connect", told(error));
        let stream = TcpStream::connect(self.endpoint.address()).await.map_err(|error| failed(&error))?;
        let _ = stream.set_nodelay(true);
        let stream: Box<dyn Socket> = match &self.tls {
            None => Box::new(stream),
            Some(tls) => {
                let (host, _) = self.endpoint.address();
                let name = ServerName::try_from(host.to_owned()).map_err(|error| failed(&error))?;
                let shaken = TlsConnector::from(Arc::clone(tls)).connect(name, stream).await;
                Box::new(shaken.map_err(|error| Failed::new("tls", told(&error)))?)
            }
        };
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|error| failed(&error))?;
        // What breaks a connection is told to whoever waits for an answer on it.
        let driver = tokio::spawn(async move { drop(connection.await) });
        Ok(Connection { sender, driver, used: Instant::now() })
    }
}

/// An answer whose head has come. Dropped before its end, it closes its connection.
#[derive(Debug)]
pub struct Reply<'t> {
    pub status: StatusCode,
    body: Incoming,
    connection: Option<Connection>,
    target: &'t Target,
}

impl Reply<'_> {
    /// The next piece of its body; `None` at its end.
    pub async fn piece(&mut self) -> Result<Option<Bytes>, Failed> {
        loop {
            match poll_fn(|context| Pin::new(&mut self.body).poll_frame(context)).await {
                Some(Ok(frame)) => {
                    if let Ok(piece) = frame.into_data() {
                        return Ok(Some(piece));
                    }
                }
                Some(Err(error)) => return Err(Failed::new("broken", told(&error))),
                None => {
                    if let Some(mut connection) = self.connection.take() {
                        connection.used = Instant::now();
                        self.target.idle.lock().unwrap_or_else(PoisonError::into_inner).push(connection);
                    }
                    return Ok(None);
                }
            }
        }
    }

    /// All of its body, as text.
    pub async fn text(mut self) -> Result<String, Failed> {
        let mut bytes = Vec::new();
        while let Some(piece) = self.piece().await? {
            bytes.extend_from_slice(&piece);
            if bytes.len() > MOST_BYTES {
                return Err(Failed::new("malformed", format_args!("the answer has more than {MOST_BYTES} bytes")));
            }
        }
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// All of its body as JSON; what is no success is a failure with what the server says.
    pub async fn json(self) -> Result<Json, Failed> {
        let status = self.status;
        let text = self.text().await?;
        let json = serde_json::from_str::<Json>(&text);
        if status.is_success() {
            return json.map_err(|error| Failed::new("malformed", format_args!("the answer is not JSON: {error}")));
        }
        Err(refused(status, json.ok().as_ref()))
    }

    /// Why it is no success.
    pub async fn refusal(self) -> Failed {
        self.json().await.err().unwrap_or_else(|| Failed::new("malformed", "the answer makes no sense"))
    }
}

/// A status that is no success, with the code and message of the error, where there are any.
fn refused(status: StatusCode, body: Option<&Json>) -> Failed {
    let error = body.and_then(|body| body.get("error"));
    let field = |name: &str| error.and_then(|error| error.get(name)).and_then(Json::as_str);
    let kind = match field("code") {
        Some(code) => format!("http_{} {}", status.as_u16(), crate::plain::shortened(code, 40)),
        None => format!("http_{}", status.as_u16()),
    };
    let message = field("message").or_else(|| error.and_then(Json::as_str)).unwrap_or("no reason was given");
    Failed::new(kind, format_args!("{}: {}", status.as_u16(), crate::plain::shortened(message, 300)))
}

/// An error with what lies behind it.
fn told(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text += &format!(": {error}");
        source = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_of_the_protocol_is_added_where_it_is_missing() {
        for (url, base) in [
            ("http://a", "/v1"),
            ("http://a/", "/v1"),
            ("http://a/v1", "/v1"),
            ("http://a/v1/", "/v1"),
            ("http://a/llm", "/llm/v1"),
            ("http://a/llm/v1", "/llm/v1"),
        ] {
            assert_eq!(Target::new(url.parse().unwrap(), None, None).unwrap().base, base, "{url}");
        }
        assert!(Target::new("http://a".parse().unwrap(), None, Some("a\nb")).is_err());
    }

    #[test]
    fn failures_are_named_by_status_and_code() {
        let body = serde_json::json!({ "error": { "message": "full", "code": "queue_full" } });
        let failed = refused(StatusCode::TOO_MANY_REQUESTS, Some(&body));
        assert_eq!(failed, Failed::new("http_429 queue_full", "429: full"));
        assert_eq!(refused(StatusCode::BAD_GATEWAY, None), Failed::new("http_502", "502: no reason was given"));
    }
}
