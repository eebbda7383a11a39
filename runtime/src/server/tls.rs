//! TLS: the server's certificate and key, and by whom the certificates of its clients must be signed.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use sha2::{Digest, Sha256};

use super::live::{read, wrong};
use super::options::ServerError;

/// What clients call HTTP/2 when they choose a protocol.
pub(super) const HTTP2: &[u8] = b"h2";

const A_CHAIN: &str = "certificates in PEM, the server's own first";
const A_KEY: &str = "a private key in PEM (PKCS #8, PKCS #1 or SEC 1)";
const AUTHORITIES: &str = "certificates of authorities in PEM";

/// Files that TLS needs. They are read again when they change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The server's certificate and those that vouch for it, in PEM, its own first.
    pub cert: PathBuf,
    /// Its private key, in PEM.
    pub key: PathBuf,
    /// Certificates of the authorities that clients' certificates must come from, in PEM; with them, no client is
    /// served without one.
    pub client_ca: Option<PathBuf>,
}

impl TlsFiles {
    /// All of them.
    pub(super) fn paths(&self) -> Vec<PathBuf> {
        [&self.cert, &self.key].into_iter().chain(&self.client_ca).cloned().collect()
    }

    /// Reads them.
    pub(super) fn config(&self) -> Result<ServerConfig, ServerError> {
        let chain = certificates(&self.cert, A_CHAIN)?;
        let key = PrivateKeyDer::from_pem_slice(&read(&self.key, A_KEY)?)
            .map_err(|error| wrong(&self.key, format!("{error}, expected {A_KEY}")))?;
        let provider = Arc::new(ring::default_provider());
        let refused = |error: rustls::Error| wrong(&self.cert, error.to_string());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(refused)?;
        let builder = match &self.client_ca {
            None => builder.with_no_client_auth(),
            Some(path) => {
                let mut roots = RootCertStore::empty();
                for certificate in certificates(path, AUTHORITIES)? {
                    let added = roots.add(certificate);
                    added.map_err(|error| wrong(path, format!("{error}, expected {AUTHORITIES}")))?;
                }
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
                builder.with_client_cert_verifier(
                    verifier.map_err(|error| wrong(path, format!("{error}, expected {AUTHORITIES}")))?,
                )
            }
        };
        let mut config = builder.with_single_cert(chain, key).map_err(|error| {
            let key = self.key.display();
            wrong(&self.cert, format!("{error}, expected a certificate for the key in {key}"))
        })?;
        config.alpn_protocols = vec![HTTP2.to_vec(), b"http/1.1".to_vec()];
        Ok(config)
    }
}

fn certificates(path: &Path, expected: &'static str) -> Result<Vec<CertificateDer<'static>>, ServerError> {
    let bytes = read(path, expected)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    match found {
        Ok(found) if found.is_empty() => Err(wrong(path, format!("holds no certificate, expected {expected}"))),
        Ok(found) => Ok(found),
        Err(error) => Err(wrong(path, format!("{error}, expected {expected}"))),
    }
}

/// Why a handshake failed, in words.
pub(super) fn why(error: &str) -> String {
    // What `openssl req -x509` and `openssl x509 -req` make without extensions is of version 1.
    match error.contains("UnsupportedCertVersion") {
        true => "the client's certificate is not of version 3, expected one with extensions".to_owned(),
        false => error.to_owned(),
    }
}

/// What logs call whoever has this certificate: the beginning of its SHA-256.
pub(super) fn caller_id(certificate: &CertificateDer<'_>) -> Arc<str> {
    let hash = Sha256::digest(certificate.as_ref());
    let digits: String = hash.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    format!("cert-{digits}").into()
}
