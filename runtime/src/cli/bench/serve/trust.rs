//! Whom a server that is reached by HTTPS must be vouched for by: authorities of a file, or those of the system.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::ring;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};

use crate::exit::Failure;

/// Where systems keep the authorities they trust, in PEM: Debian and its kin, Fedora and its kin, Alpine and macOS.
const SYSTEM: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];

/// A client that talks to nobody else. There is none that asks for no certificate: what it measured could be anybody.
pub fn client(ca: Option<&Path>) -> Result<Arc<ClientConfig>, Failure> {
    let mut roots = RootCertStore::empty();
    match ca {
        Some(path) => {
            for certificate in certificates(path)? {
                let added = roots.add(certificate);
                added.map_err(|error| Failure::usage(format_args!("--ca: {}: {error}", path.display())))?;
            }
        }
        None => {
            let path = system().ok_or_else(|| {
                Failure::usage("--url: this system has no file of authorities").hint("--ca names one, in PEM")
            })?;
            // Systems carry some that are of no use here.
            roots.add_parsable_certificates(certificates(&path)?);
        }
    }
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let builder = builder.with_safe_default_protocol_versions();
    let builder = builder.map_err(|error| Failure::usage(format_args!("--url: {error}")))?;
    let mut config = builder.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// The file of the system's authorities: what `SSL_CERT_FILE` says, or the first there is.
fn system() -> Option<PathBuf> {
    let named = std::env::var_os("SSL_CERT_FILE").filter(|name| !name.is_empty()).map(PathBuf::from);
    named.or_else(|| SYSTEM.iter().map(PathBuf::from).find(|path| path.exists()))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Failure> {
    let bytes = std::fs::read(path).map_err(|error| Failure::file(path, "read it", &error))?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    let wrong = |problem: &str| {
        Failure::usage(format_args!("{}: {problem}, expected certificates of authorities in PEM", path.display()))
    };
    match found {
        Ok(found) if found.is_empty() => Err(wrong("it holds no certificate")),
        Ok(found) => Ok(found),
        Err(error) => Err(wrong(&error.to_string())),
    }
}
