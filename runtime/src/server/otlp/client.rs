//! Messages to a collector: one connection each, for they are few.

use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderName, HeaderValue, Request, StatusCode, header};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::OtlpOptions;

/// A message that takes longer has failed.
const MOST: Duration = Duration::from_secs(10);
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
        headers.insert(HeaderName::from_bytes(name.as_bytes())?, HeaderValue::from_str(value)?);
    }
    let driver = tokio::spawn(connection);
    let response = sender.send_request(request).await;
    driver.abort();
    Ok(response?.status())
}
