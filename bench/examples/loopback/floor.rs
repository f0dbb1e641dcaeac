//! The cost of TLS over TCP alone, in blocking threads: the bound for one hop and for two.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Instant;

use clap::ValueEnum;
use remoteprocess_tls::{Authority, Role};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, ServerConfig, ServerConnection, StreamOwned};

use crate::cost;
use crate::operator::trust_domain;
use crate::pod::first_line;

/// Bytes of a write and of a read.
const BLOCK: usize = 128 << 10;

/// The role of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum End {
    /// Makes them
    Source,
    /// Passes them on
    Middle,
    /// Throws them away
    Sink,
}

/// Runs one process: `hello` is the cipher (128 or 256), the number of bytes, and their source.
pub(crate) fn run(end: End, hello: &str) {
    let mut words = hello.split(' ');
    let cipher = words.next().unwrap();
    let bytes: usize = words.next().unwrap().parse().unwrap();
    let from = words.next();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    println!("{}", listener.local_addr().unwrap());
    let mut upstream = from.map(|from| {
        let stream = TcpStream::connect(from).unwrap();
        let name = ServerName::try_from("operator.measured.local").unwrap();
        StreamOwned::new(ClientConnection::new(client(cipher), name).unwrap(), stream)
    });
    let mut downstream = (end != End::Sink).then(|| {
        let (stream, _) = listener.accept().unwrap();
        StreamOwned::new(ServerConnection::new(server(cipher)).unwrap(), stream)
    });
    let mut block = vec![b'x'; BLOCK];
    let mut left = bytes;
    while left > 0 {
        let mut count = left.min(BLOCK);
        if let Some(upstream) = &mut upstream {
            count = upstream.read(&mut block[..count]).unwrap();
        }
        if let Some(downstream) = &mut downstream {
            downstream.write_all(&block[..count]).unwrap();
        }
        left -= count;
    }
    println!("{}", cost::process(std::process::id()));
}

/// Measures one hop and two.
pub(crate) fn measure(megabytes: usize) {
    for cipher in ["128", "256"] {
        for ends in [&[End::Source, End::Sink][..], &[End::Source, End::Middle, End::Sink]] {
            hops(ends, cipher, megabytes * 1_000_000);
        }
    }
}

fn hops(ends: &[End], cipher: &str, bytes: usize) {
    let begun = Instant::now();
    let mut children: Vec<(Child, _)> = Vec::new();
    let mut address = String::new();
    for end in ends {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .arg("hop")
            .arg(end.to_possible_value().unwrap().get_name())
            .arg(format!("{cipher} {bytes} {address}").trim())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdout = child.stdout.take().unwrap();
        address = first_line(&mut stdout);
        children.push((child, stdout));
    }
    let mut text = String::new();
    let mut sum = 0.0;
    for (end, (child, stdout)) in ends.iter().zip(&mut children) {
        let mut nanos = String::new();
        stdout.read_to_string(&mut nanos).unwrap();
        child.wait().unwrap();
        let each = nanos.trim().parse::<f64>().unwrap() / bytes as f64;
        sum += each;
        text += &format!(", {end:?} {each:.2}");
    }
    println!(
        "AES-{cipher}, {} hops: {:.1} MB/s, {sum:.2} ns CPU/B{text}",
        ends.len() - 1,
        bytes as f64 / begun.elapsed().as_secs_f64() / 1e6,
    );
}

fn provider(cipher: &str) -> Arc<CryptoProvider> {
    let suite = match cipher {
        "128" => ring::cipher_suite::TLS13_AES_128_GCM_SHA256,
        _ => ring::cipher_suite::TLS13_AES_256_GCM_SHA384,
    };
    Arc::new(CryptoProvider {
        cipher_suites: vec![suite],
        ..ring::default_provider()
    })
}

/// The same in each process: no identity is verified here.
fn authority() -> Authority {
    Authority::generate(&trust_domain()).unwrap()
}

fn server(cipher: &str) -> Arc<ServerConfig> {
    let authority = authority();
    let (chain, key) = authority
        .issue(&Role::Operator, None, std::time::Duration::from_secs(3600))
        .unwrap();
    let chain = CertificateDer::pem_slice_iter(chain.as_bytes())
        .map(Result::unwrap)
        .collect();
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
    let config = ServerConfig::builder_with_provider(provider(cipher))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    Arc::new(config)
}

fn client(cipher: &str) -> Arc<ClientConfig> {
    let config = ClientConfig::builder_with_provider(provider(cipher))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody))
        .with_no_client_auth();
    Arc::new(config)
}

#[derive(Debug)]
struct Anybody;

impl rustls::client::danger::ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: rustls::pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        ring::default_provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}
