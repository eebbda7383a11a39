//! Where something else is reached by HTTP: a collector of telemetry, or a server that is measured.

use std::str::FromStr;

use axum::http::Uri;

/// Where something is reached by HTTP: `http://HOST[:PORT][/PATH]`, or the same with `https`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    is_https: bool,
    host: String,
    port: u16,
    /// Without a slash at its end.
    path: String,
}

impl FromStr for Endpoint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = || format!("{text:?} is no address, expected http://HOST:PORT or https://HOST:PORT");
        let uri: Uri = text.parse().map_err(|_| expected())?;
        let host = uri.host().filter(|host| !host.is_empty()).ok_or_else(expected)?;
        let (is_https, default_port) = match uri.scheme_str() {
            Some("http") => (false, 80),
            Some("https") => (true, 443),
            _ => return Err(expected()),
        };
        let authority = uri.authority().map_or("", |authority| authority.as_str());
        let has_port = authority.rsplit_once(':').is_some_and(|(_, after)| !after.contains(']'));
        let port = match uri.port_u16() {
            None if has_port => return Err(expected()),
            port => port.unwrap_or(default_port),
        };
        if uri.query().is_some() {
            return Err(expected());
        }
        let path = uri.path().trim_end_matches('/').to_owned();
        Ok(Self { is_https, host: host.to_owned(), port, path })
    }
}

impl Endpoint {
    /// Whether it is reached by TLS.
    pub fn is_https(&self) -> bool {
        self.is_https
    }

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_addresses() {
        let endpoint: Endpoint = "http://collector:4318".parse().unwrap();
        assert_eq!((endpoint.address(), endpoint.path(), endpoint.is_https()), (("collector", 4318), "", false));
        let endpoint: Endpoint = "https://[::1]/otlp/".parse().unwrap();
        assert_eq!((endpoint.address(), endpoint.path(), endpoint.is_https()), (("::1", 443), "/otlp", true));
        assert_eq!(endpoint.authority(), "[::1]:443");
        for wrong in ["", "collector:4318", "ftp://collector:4318", "http://", "http://a:99999", "http://a/?b"] {
            assert!(wrong.parse::<Endpoint>().is_err(), "{wrong}");
        }
    }
}
