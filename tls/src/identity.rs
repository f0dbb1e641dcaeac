use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwap;
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    client::{Resumption, WebPkiServerVerifier, danger::ServerCertVerifier},
    crypto::CryptoProvider,
    crypto::ring::cipher_suite::{TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256},
    server::{NoServerSessionStorage, WebPkiClientVerifier, danger::ClientCertVerifier},
    version::TLS13,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject};

use crate::{ClientAuth, Error, PeerIdentity, Role, TrustDomain, certificate};

/// HTTP/2, the application protocol of every connection that this program opens.
const H2: &[u8] = b"h2";
/// HTTP/1.1, which a listener may serve, too.
pub(crate) const HTTP1: &[u8] = b"http/1.1";

/// Who this program is and whom it trusts. It may be replaced at any time: each new handshake, in either direction,
/// uses the current one; established connections are not affected.
pub struct Identity {
    trust_domain: TrustDomain,
    current: ArcSwap<Material>,
}

/// One verified generation of an [`Identity`].
pub(crate) struct Material {
    role: Role,
    not_before: SystemTime,
    not_after: SystemTime,
    bundle_pem: String,
    mutual: Arc<ServerConfig>,
    mutual_http1: Arc<ServerConfig>,
    anonymous: Arc<ServerConfig>,
    pub(crate) client: Arc<ClientConfig>,
}

impl Identity {
    /// Reads a chain (the leaf first), its key, and all CAs to trust, as PEM texts.
    ///
    /// # Errors
    /// As [`Identity::replace`].
    pub fn new(
        chain_pem: &str,
        key_pem: &str,
        bundle_pem: &str,
        trust_domain: &TrustDomain,
    ) -> Result<Arc<Self>, Error> {
        let material = Material::verified(chain_pem, key_pem, bundle_pem, trust_domain)?;
        Ok(Arc::new(Self {
            trust_domain: trust_domain.clone(),
            current: ArcSwap::from_pointee(material),
        }))
    }

    /// Replaces the current certificate and set of CAs by newer ones.
    ///
    /// # Errors
    /// The texts do not decode, the key does not match the leaf, the leaf is for another role than the current one, or
    /// our own verifier refuses it now under the new bundle. The current one then stays in use.
    pub fn replace(&self, chain_pem: &str, key_pem: &str, bundle_pem: &str) -> Result<(), Error> {
        let material = Material::verified(chain_pem, key_pem, bundle_pem, &self.trust_domain)?;
        let current = self.role();
        if material.role != current {
            return Err(Error::OtherRole {
                current,
                found: material.role,
            });
        }
        self.current.store(Arc::new(material));
        Ok(())
    }

    /// Role of this program.
    pub fn role(&self) -> Role {
        self.current.load().role.clone()
    }

    /// The trust domain of this program and of all its peers.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// All CAs that are trusted now, PEM.
    pub fn bundle_pem(&self) -> String {
        self.current.load().bundle_pem.clone()
    }

    /// From when on peers refuse the current certificate.
    pub fn not_after(&self) -> SystemTime {
        self.current.load().not_after
    }

    /// When to request the next certificate: after three fifths of the current one's life.
    pub fn renew_at(&self) -> SystemTime {
        let material = self.current.load();
        let life = material
            .not_after
            .duration_since(material.not_before)
            .unwrap_or(Duration::ZERO);
        material.not_before + life * 3 / 5
    }

    pub(crate) fn material(&self) -> Arc<Material> {
        self.current.load_full()
    }
}

impl Material {
    /// For a listener; `http1`: whether it serves HTTP/1.1, too.
    pub(crate) fn server(&self, client_auth: ClientAuth, http1: bool) -> Arc<ServerConfig> {
        match (client_auth, http1) {
            (ClientAuth::None, _) => self.anonymous.clone(),
            (ClientAuth::Required | ClientAuth::OperatorOnly, true) => self.mutual_http1.clone(),
            (ClientAuth::Required | ClientAuth::OperatorOnly, false) => self.mutual.clone(),
        }
    }

    fn verified(chain_pem: &str, key_pem: &str, bundle_pem: &str, trust_domain: &TrustDomain) -> Result<Self, Error> {
        let chain = certificates(chain_pem)?;
        let leaf = chain.first().ok_or(Error::Pem { what: "certificate" })?;
        let key = PrivateKeyDer::from_pem_slice(key_pem.as_bytes()).map_err(|_| Error::Pem { what: "private key" })?;
        let roots = roots(bundle_pem)?;
        let role = PeerIdentity::from_der(leaf, trust_domain)?.role;
        let verifier = client_verifier(&roots)?;
        verify(&chain, &role, trust_domain, &roots, verifier.as_ref())?;
        let (not_before, not_after) = certificate::validity(leaf)?;
        let mutual = server_config(chain.clone(), key.clone_key(), verifier)?;
        let anonymous = server_config(chain.clone(), key.clone_key(), WebPkiClientVerifier::no_client_auth())?;
        let mut mutual_http1 = (*mutual).clone();
        mutual_http1.alpn_protocols.push(HTTP1.to_vec());
        let client = client_config(&roots, Some((chain, key)))?;
        Ok(Self {
            role,
            not_before,
            not_after,
            bundle_pem: bundle_pem.to_owned(),
            mutual,
            mutual_http1: Arc::new(mutual_http1),
            anonymous,
            client,
        })
    }
}

/// Verifies the chain as peers will, before it is used: as a client's, and as a server's if the role listens.
fn verify(
    chain: &[CertificateDer<'static>],
    role: &Role,
    trust_domain: &TrustDomain,
    roots: &Arc<RootCertStore>,
    verifier: &dyn ClientCertVerifier,
) -> Result<(), Error> {
    let (leaf, intermediates) = chain.split_first().ok_or(Error::NoCertificate)?;
    let now = UnixTime::now();
    verifier
        .verify_client_cert(leaf, intermediates, now)
        .map_err(Error::Unverified)?;
    if let Some(name) = role.server_name(trust_domain) {
        let name = ServerName::try_from(name).map_err(|_| Error::NotAServer(role.clone()))?;
        WebPkiServerVerifier::builder_with_provider(roots.clone(), provider())
            .build()
            .map_err(|e| rustls::Error::General(e.to_string()))?
            .verify_server_cert(leaf, intermediates, &name, &[], now)
            .map_err(Error::Unverified)?;
    }
    Ok(())
}

fn client_verifier(roots: &Arc<RootCertStore>) -> Result<Arc<dyn ClientCertVerifier>, Error> {
    WebPkiClientVerifier::builder_with_provider(roots.clone(), provider())
        .build()
        .map_err(|e| rustls::Error::General(e.to_string()).into())
}

fn server_config(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    verifier: Arc<dyn ClientCertVerifier>,
) -> Result<Arc<ServerConfig>, Error> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![H2.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

/// The client's TLS configuration: the standard verifier over `roots`, with or without a certificate of its own.
pub(crate) fn client_config(
    roots: &Arc<RootCertStore>,
    own: Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>,
) -> Result<Arc<ClientConfig>, Error> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])?
        .with_root_certificates(roots.clone());
    let mut config = match own {
        Some((chain, key)) => builder.with_client_auth_cert(chain, key)?,
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![H2.to_vec()];
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

/// One bundle of several PEM texts, each certificate once.
///
/// # Errors
/// A text does not decode, or there is no certificate in any of them.
pub fn bundle(texts: &[&str]) -> Result<String, Error> {
    let mut set = Vec::new();
    for certificate in certificates(&texts.concat())? {
        if !set.contains(&certificate) {
            set.push(certificate);
        }
    }
    Ok(set.iter().map(certificate::pem).collect())
}

/// All CAs of a bundle. Each must be readable; otherwise a broken bundle would silently trust fewer than it lists.
pub(crate) fn roots(bundle_pem: &str) -> Result<Arc<RootCertStore>, Error> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(bundle_pem)? {
        roots.add(certificate)?;
    }
    Ok(Arc::new(roots))
}

fn certificates(pem: &str) -> Result<Vec<CertificateDer<'static>>, Error> {
    let all: Vec<_> = CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|_| Error::Pem { what: "certificate" })?;
    if all.is_empty() {
        Err(Error::Pem { what: "certificate" })
    } else {
        Ok(all)
    }
}

/// When the certificates of a bundle (PEM) end.
///
/// # Errors
/// The bundle has no certificate, or one that cannot be read.
pub fn expiries(bundle: &str) -> Result<Vec<SystemTime>, Error> {
    let ends = certificates(bundle)?;
    ends.iter().map(|end| Ok(certificate::validity(end)?.1)).collect()
}

fn provider() -> Arc<CryptoProvider> {
    let mut provider = rustls::crypto::ring::default_provider();
    // The cheaper one first: AES-128 is as unbreakable in practice, and output is encrypted and decrypted twice on its
    // way.
    provider.cipher_suites = vec![
        TLS13_AES_128_GCM_SHA256,
        TLS13_AES_256_GCM_SHA384,
        TLS13_CHACHA20_POLY1305_SHA256,
    ];
    Arc::new(provider)
}
