//! Peers that must reach nothing of a running agent. No byte of HTTP answers them, so they reach no method.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::ExtendedKeyUsagePurpose::{self, ClientAuth, ServerAuth};
use rcgen::{CertificateParams, Issuer, KeyPair, KeyUsagePurpose, SanType};
use remoteprocess_tls::{Authority, Role};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use super::in_time;
use super::pod::{Options, Pod};
use super::relay::{TestRelay, agent_role, trust_domain};

/// The preface of HTTP/2, and empty settings.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// The chain and the key of a peer, or none.
type Own = Option<(String, String)>;

/// A leaf for these URIs, signed by a CA or by itself. Times are in seconds from now.
fn leaf(
    ca: Option<&Authority>,
    uris: &[&str],
    (from, to): (i64, i64),
    usages: &[ExtendedKeyUsagePurpose],
) -> (String, String) {
    let at = |seconds: i64| {
        let distance = Duration::from_secs(seconds.unsigned_abs());
        let now = SystemTime::now();
        if seconds < 0 { now - distance } else { now + distance }.into()
    };
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.not_before = at(from);
    params.not_after = at(to);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = usages.to_vec();
    params.subject_alt_names = uris
        .iter()
        .map(|uri| SanType::URI((*uri).try_into().unwrap()))
        .collect();
    let certificate = match ca {
        None => params.self_signed(&key),
        Some(ca) => {
            let ca_key = KeyPair::from_pem(&ca.key_pem()).unwrap();
            params.signed_by(&key, &Issuer::from_ca_cert_pem(ca.cert_pem(), ca_key).unwrap())
        }
    };
    (certificate.unwrap().pem(), key.serialize_pem())
}

fn strangers(ours: &Authority) -> Vec<(&'static str, Own)> {
    let other = Authority::generate(&trust_domain()).unwrap();
    let (hour, both) = (3600, &[ClientAuth, ServerAuth][..]);
    let uri = |role: &Role| role.uri(&trust_domain());
    let (operator, user) = (uri(&Role::Operator), uri(&Role::User));
    let another = uri(&Role::Agent {
        namespace: "default".into(),
        pod_uid: "6f2e8c1a-0000-4000-8000-000000000002".into(),
    });
    let odd = |uris: &[&str], times, usages| Some(leaf(Some(ours), uris, times, usages));
    vec![
        ("no certificate", None),
        ("a self-signed one", Some(leaf(None, &[&operator], (-60, hour), both))),
        (
            "one of another CA",
            Some(leaf(Some(&other), &[&operator], (-60, hour), both)),
        ),
        ("an expired one", odd(&[&operator], (-120, -60), both)),
        ("one that is not yet valid", odd(&[&operator], (600, hour), both)),
        ("another agent's", odd(&[&another], (-60, hour), both)),
        ("its own", odd(&[&uri(&agent_role())], (-60, hour), both)),
        ("a user's", odd(&[&user], (-60, hour), both)),
        ("one for a server only", odd(&[&operator], (-60, hour), &[ServerAuth])),
        (
            "one of another domain",
            odd(&["spiffe://other.local/operator"], (-60, hour), both),
        ),
        ("one of no role", odd(&[], (-60, hour), both)),
        ("one of two roles", odd(&[&operator, &user], (-60, hour), both)),
    ]
}

/// How many bytes the agent answers to a peer that follows none of our rules.
async fn answered(ca: &str, address: SocketAddr, own: Own) -> std::io::Result<usize> {
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_slice(ca.as_bytes()).unwrap())
        .unwrap();
    let builder = ClientConfig::builder().with_root_certificates(roots);
    let mut config = match own {
        None => builder.with_no_client_auth(),
        Some((chain, key)) => {
            let chain = CertificateDer::pem_slice_iter(chain.as_bytes()).collect::<Result<_, _>>();
            let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
            builder.with_client_auth_cert(chain.unwrap(), key).unwrap()
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    let name = ServerName::try_from(agent_role().server_name(&trust_domain()).unwrap()).unwrap();
    let connector = TlsConnector::from(Arc::new(config));
    let mut stream = connector.connect(name, TcpStream::connect(address).await?).await?;
    stream.write_all(PREFACE).await?;
    stream.read(&mut [0; 64]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn no_stranger_gets_a_byte_from_an_agent() {
    let mut relay = TestRelay::start().await;
    let mut pod = Pod::start(&relay, &Options::default());
    pod.shell("sleep 600");
    let address: SocketAddr = relay.next_start().await.address.parse().unwrap();
    let ca = relay.authority.cert_pem();
    for (what, own) in strangers(&relay.authority) {
        let got = in_time("a refusal", answered(ca, address, own)).await;
        assert!(
            matches!(got, Ok(0) | Err(_)),
            "the agent answered a peer with {what}: {got:?}"
        );
    }
    let operator = leaf(
        Some(&relay.authority),
        &[&Role::Operator.uri(&trust_domain())],
        (-60, 60),
        &[ClientAuth],
    );
    let got = in_time("an answer", answered(ca, address, Some(operator))).await;
    assert!(got.is_ok_and(|bytes| bytes > 0), "the operator is answered");
}
