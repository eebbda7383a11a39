//! Messages to a collector: one connection each, for they are few.

use std::str::FromStr;
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderName, HeaderValue, Request, StatusCode, Uri, header};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::OtlpOptions;

/// A message that takes longer has failed.
const MOST: Duration = Duration::from_secs(10);
const DEFAULT_PORT: u16 = 80;

/// Where something is reached by HTTP: `http://HOST[:PORT][/PATH]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    host: String,
    port: u16,
    /// Without a slash at its end.
    path: String,
}

impl FromStr for Endpoint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = || format!("{text:?} is no address, expected http://HOST:PORT");
        let uri: Uri = text.parse().map_err(|_| expected())?;
        let host = uri.host().filter(|host| !host.is_empty()).ok_or_else(expected)?;
        if uri.scheme_str() != Some("http") || uri.query().is_some() {
            return Err(expected());
        }
        let authority = uri.authority().map_or("", |authority| authority.as_str());
        let has_port = authority.rsplit_once(':').is_some_and(|(_, after)| !after.contains(']'));
        let port = match uri.port_u16() {
            None if has_port => return Err(expected()),
            port => port.unwrap_or(DEFAULT_PORT),
        };
        Ok(Self { host: host.to_owned(), port, path: uri.path().trim_end_matches('/').to_owned() })
    }
}

impl Endpoint {
    /// Name and port to connect to; addresses of IPv6 without their brackets.
    pub fn address(&self) -> (&str, u16) {
        (self.host.trim_start_matches('[').trim_end_matches(']'), self.port)
    }

    /// The value of the header `Host`.
    pub fn authority(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }

    /// What all paths begin with; without a slash at its end.
    pub fn path(&self) -> &str {
        &self.path
    }
}

/// Why a message was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// It may be the next time.
    Passing,
    /// It never will be.
    Lasting,
}

/// Sends JSON to a path of the collector.
pub(super) async fn post(options: &OtlpOptions, path: &str, body: String) -> Result<(), Failure> {
    match tokio::time::timeout(MOST, send(options, path, body)).await {
        Err(_) => Err(Failure::Passing),
        Ok(Err(_)) => Err(Failure::Passing),
        Ok(Ok(status)) if status.is_success() => Ok(()),
        // Those that OTLP names as worth another try.
        Ok(Ok(status)) if [429, 502, 503, 504].contains(&status.as_u16()) => Err(Failure::Passing),
        Ok(Ok(_)) => Err(Failure::Lasting),
    }
}

type AnyError = Box<dyn std::error::Error + Send + Sync>;

async fn send(options: &OtlpOptions, path: &str, body: String) -> Result<StatusCode, AnyError> {
    let endpoint = &options.endpoint;
    let stream = TcpStream::connect(endpoint.address()).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let mut request = Request::post(format!("{}{path}", endpoint.path())).body(Body::from(body))?;
    let headers = request.headers_mut();
    headers.insert(header::HOST, HeaderValue::from_str(&endpoint.authority())?);
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    for (name, value) in &options.headers {
        headers.insert(HeaderName::from_str(name)?, HeaderValue::from_str(value)?);
    }
    let driver = tokio::spawn(connection);
    let response = sender.send_request(request).await;
    driver.abort();
    Ok(response?.status())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_addresses() {
        let endpoint: Endpoint = "http://collector:4318".parse().unwrap();
        assert_eq!((endpoint.host.as_str(), endpoint.port, endpoint.path.as_str()), ("collector", 4318, ""));
        let endpoint: Endpoint = "http://[::1]/otlp/".parse().unwrap();
        assert_eq!((endpoint.host.as_str(), endpoint.port, endpoint.path.as_str()), ("[::1]", 80, "/otlp"));
        for wrong in ["", "collector:4318", "https://collector:4318", "http://", "http://a:99999", "http://a/?b"] {
            assert!(wrong.parse::<Endpoint>().is_err(), "{wrong}");
        }
    }
}
