//! HTTPS, with certificates made here: who is served, who is not, and what happens when files change.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, Issuer, KeyPair};
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use serde_json::json;

use crate::chat::{PATH, ask};
use crate::http::{Reply, connect, head, parse, post_request};
use crate::program::{TempFile, command, serve};
use crate::streams::wait_until;

/// An authority.
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

/// A certificate and its key, in PEM.
#[derive(Clone)]
pub struct Pair {
    pub cert: String,
    pub key: String,
}

impl Authority {
    pub fn new(name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    pub fn pem(&self) -> String {
        self.0.pem()
    }

    pub fn signs(&self, change: impl FnOnce(&mut CertificateParams)) -> Pair {
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let issuer: &Issuer<'static, KeyPair> = &self.0;
        Pair { cert: params.signed_by(&key, issuer).unwrap().pem(), key: key.serialize_pem() }
    }

    pub fn signs_well(&self) -> Pair {
        self.signs(|_| {})
    }
}

/// Files of a server's certificate and key.
pub struct Files {
    cert: TempFile,
    key: TempFile,
}

impl Files {
    pub fn new(name: &str, pair: &Pair) -> Self {
        Self {
            cert: TempFile::new(&format!("{name}-cert.pem"), &pair.cert),
            key: TempFile::new(&format!("{name}-key.pem"), &pair.key),
        }
    }

    pub fn args(&self) -> [&str; 4] {
        ["--tls-cert", self.cert.path(), "--tls-key", self.key.path()]
    }
}

type Tls = StreamOwned<ClientConnection, TcpStream>;

/// A client that trusts an authority, and may have a certificate.
pub fn client(authority: &Authority, own: Option<&Pair>) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(authority.pem().as_bytes()).unwrap()).unwrap();
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let builder = builder.with_safe_default_protocol_versions().unwrap().with_root_certificates(roots);
    let mut config = match own {
        None => builder.with_no_client_auth(),
        Some(pair) => {
            let chain = vec![CertificateDer::from_pem_slice(pair.cert.as_bytes()).unwrap()];
            builder.with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(pair.key.as_bytes()).unwrap()).unwrap()
        }
    };
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Arc::new(config)
}

/// A client that shows a certificate as X.509 had them before there were extensions.
fn showing_version_1(authority: &Authority) -> Arc<ClientConfig> {
    // Content and what follows it, of a sequence of less than 64 KiB.
    let open = |der: &[u8]| {
        let (head, n) = match der[1] {
            0x81 => (3, usize::from(der[2])),
            0x82 => (4, usize::from(der[2]) << 8 | usize::from(der[3])),
            n => (2, n.into()),
        };
        (der[head..head + n].to_vec(), der[head + n..].to_vec())
    };
    let close = |content: &[u8]| {
        let n = u16::try_from(content.len()).unwrap().to_be_bytes();
        let head = if n[0] == 0 { vec![0x30, 0x81, n[1]] } else { vec![0x30, 0x82, n[0], n[1]] };
        [head, content.to_vec()].concat()
    };
    let pair = authority.signs_well();
    let (whole, _) = open(CertificateDer::from_pem_slice(pair.cert.as_bytes()).unwrap().as_ref());
    let (signed, signature) = open(&whole);
    // It begins with its version, which the first one leaves out.
    let rest = signed.strip_prefix(&[0xa0, 3, 2, 1, 2]).unwrap();
    let der = close(&[close(rest), signature].concat());
    let key = PrivateKeyDer::from_pem_slice(pair.key.as_bytes()).unwrap();
    let key = ring::sign::any_supported_type(&key).unwrap();
    let mut config = ClientConfig::clone(&client(authority, None));
    let shown = rustls::sign::CertifiedKey::new(vec![der.into()], key);
    config.client_auth_cert_resolver = Arc::new(rustls::sign::SingleCertAndKey::from(shown));
    Arc::new(config)
}

/// A connection whose handshake is done, as far as the client can tell.
fn open(address: SocketAddr, config: &Arc<ClientConfig>) -> std::io::Result<Tls> {
    let name = "localhost".try_into().unwrap();
    let mut stream = StreamOwned::new(ClientConnection::new(Arc::clone(config), name).unwrap(), connect(address));
    while stream.conn.is_handshaking() {
        stream.conn.complete_io(&mut stream.sock)?;
    }
    Ok(stream)
}

/// Asks on a connection and reads to its end.
fn ask_on(mut stream: Tls, request: &str) -> std::io::Result<Reply> {
    stream.write_all(request.as_bytes())?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes)?;
    Ok(parse(&bytes))
}

fn health(address: SocketAddr, config: &Arc<ClientConfig>) -> std::io::Result<Reply> {
    ask_on(open(address, config)?, &head("GET", "/healthz", ""))
}

#[test]
fn requests_are_answered_over_tls() {
    let authority = Authority::new("farpost tests");
    let files = Files::new("plain", &authority.signs_well());
    let mut server = serve(&files.args());
    assert!(server.wait_for("ready: ").contains("https://127.0.0.1:"));
    let trusting = client(&authority, None);
    let stream = open(server.address, &trusting).unwrap();
    assert_eq!(stream.conn.alpn_protocol(), Some(&b"http/1.1"[..]));
    let reply = ask_on(stream, &post_request(PATH, &ask(json!({})).to_string(), "")).unwrap();
    assert_eq!(reply.json(200)["object"], "chat.completion");
    let stream = open(server.address, &trusting).unwrap();
    let reply = ask_on(stream, &post_request(PATH, &ask(json!({ "stream": true })).to_string(), "")).unwrap();
    assert!(crate::http::chunks(&reply).len() > 1);
    // Whoever trusts another authority, and whoever talks plainly.
    assert!(open(server.address, &client(&Authority::new("other"), None)).is_err());
    let mut plain = connect(server.address);
    plain.write_all(head("GET", "/healthz", "").as_bytes()).unwrap();
    let mut bytes = Vec::new();
    let _ = plain.read_to_end(&mut bytes);
    assert!(!bytes.starts_with(b"HTTP"), "{}", String::from_utf8_lossy(&bytes));
    server.wait_for("the TLS handshake failed");
    assert_eq!(health(server.address, &trusting).unwrap().status, 200);
}

#[test]
fn clients_without_a_right_certificate_are_not_served() {
    let (authority, other) = (Authority::new("ours"), Authority::new("theirs"));
    let files = Files::new("mutual", &authority.signs_well());
    let ca = TempFile::new("mutual-ca.pem", &authority.pem());
    // No keys, yet not for this machine only.
    let mut server = serve(&[&files.args()[..], &["--client-ca", ca.path(), "--host", "0.0.0.0", "--json"]].concat());
    let address = ([127, 0, 0, 1], server.address.port()).into();
    let expired = authority.signs(|params| params.not_after = rcgen::date_time_ymd(2001, 1, 1));
    for own in [None, Some(&expired), Some(&other.signs_well())] {
        assert!(health(address, &client(&authority, own)).is_err());
    }
    assert!(health(address, &showing_version_1(&authority)).is_err());
    server.wait_for("the TLS handshake failed: the client's certificate is not of version 3, expected one with");
    let known = client(&authority, Some(&authority.signs_well()));
    let request = post_request(PATH, &ask(json!({})).to_string(), "X-Request-Id: with-certificate\r\n");
    assert_eq!(ask_on(open(address, &known).unwrap(), &request).unwrap().status, 200);
    let line: serde_json::Value = serde_json::from_str(&server.wait_for("with-certificate")).unwrap();
    assert!(line["key"].as_str().is_some_and(|key| key.starts_with("cert-") && key.len() == 21), "{line}");
}

#[test]
fn certificates_are_changed_without_dropping_connections() {
    let (old, new) = (Authority::new("old"), Authority::new("new"));
    let files = Files::new("changed", &old.signs_well());
    let mut server = serve(&files.args());
    let (trusts_old, trusts_new) = (client(&old, None), client(&new, None));
    let mut kept = open(server.address, &trusts_old).unwrap();
    assert!(open(server.address, &trusts_new).is_err());
    // A key that is not the certificate's changes nothing.
    let pair = new.signs_well();
    std::fs::write(&files.cert.0, &pair.cert).unwrap();
    server.signal("HUP");
    let said = server.wait_for("what was read before stays in force");
    assert!(said.contains("changed-cert.pem: ") && said.contains("expected a certificate for the key in"), "{said}");
    assert_eq!(health(server.address, &trusts_old).unwrap().status, 200);
    std::fs::write(&files.key.0, &pair.key).unwrap();
    // Without a signal, too.
    wait_until(|| health(server.address, &trusts_new).is_ok_and(|reply| reply.status == 200));
    assert!(open(server.address, &trusts_old).is_err());
    kept.write_all(head("GET", "/healthz", "").as_bytes()).unwrap();
    let mut bytes = Vec::new();
    kept.read_to_end(&mut bytes).unwrap();
    assert_eq!(parse(&bytes).status, 200);
}

#[test]
fn bad_files_are_named_with_what_was_expected() {
    let pair = Authority::new("a").signs_well();
    let other = Authority::new("b").signs_well();
    let (good, swapped) = (Files::new("good", &pair), Files::new("other", &other));
    let empty = TempFile::new("empty.pem", "no PEM at all\n");
    let refused = |args: &[&str]| {
        let output = command(args).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let cases: [(&[&str], &str); 5] = [
        (&["--tls-cert", "/nonexistent", "--tls-key", good.key.path()], "/nonexistent: cannot read it"),
        (
            &["--tls-cert", empty.path(), "--tls-key", good.key.path()],
            "holds no certificate, expected certificates in PEM",
        ),
        (&["--tls-cert", good.cert.path(), "--tls-key", empty.path()], "expected a private key in PEM"),
        (&["--tls-cert", good.cert.path(), "--tls-key", swapped.key.path()], "expected a certificate for the key in"),
        (
            &["--tls-cert", good.cert.path(), "--tls-key", good.key.path(), "--client-ca", empty.path()],
            "holds no certificate, expected certificates of authorities",
        ),
    ];
    for (args, expected) in cases {
        let (code, err) = refused(args);
        assert_eq!(code, Some(2), "{err}");
        assert!(err.contains(expected), "{err}");
    }
    assert_eq!(refused(&["--tls-cert", good.cert.path()]).0, Some(2));
}

#[test]
fn a_handshake_that_does_not_come_is_not_waited_for() {
    let files = Files::new("silent", &Authority::new("a").signs_well());
    let mut server = serve(&files.args());
    let mut silent = connect(server.address);
    silent.set_read_timeout(Some(crate::program::PATIENCE)).unwrap();
    server.signal("TERM");
    // The end of the server does not wait for it either.
    let mut bytes = Vec::new();
    match silent.read_to_end(&mut bytes) {
        Ok(_) => assert!(bytes.is_empty()),
        Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
    }
    assert_eq!(server.ended().code(), Some(0));
}
