use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, DnValue, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PublicKeyData, SanType, SubjectPublicKeyInfo,
};
use rustls_pki_types::{CertificateDer, pem::PemObject};
use x509_parser::asn1_rs::Tag;
use x509_parser::prelude::{FromDer, X509Certificate, X509CertificationRequest};

use crate::{Error, Role, TrustDomain, User, certificate};

/// Certificates are valid from a little before now, because clocks of nodes differ: a twelfth of their life, but at most
/// this much.
const BACKDATE: Duration = Duration::from_secs(5 * 60);

/// How long a generated authority lasts, unless its maker says otherwise.
const AUTHORITY_LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// How many authorities may follow each other between a leaf and the oldest one that still vouches for it.
const CROSS_PATH_LENGTH: u8 = 2;

/// A new key and the request to certify it. P-256. The request names nobody: who the key is for is the signer's to say.
pub struct KeyRequest {
    /// The private key, PKCS#8 PEM.
    pub key_pem: String,
    /// The request, PKCS#10 DER.
    pub csr_der: Vec<u8>,
    /// The same request as PEM, as a `CertificateSigningRequest` object expects it.
    pub csr_pem: String,
}

impl KeyRequest {
    /// Makes a key and its request.
    ///
    /// # Errors
    /// No randomness is available.
    pub fn generate() -> Result<Self, Error> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        let csr = params.serialize_request(&key)?;
        Ok(Self {
            key_pem: key.serialize_pem(),
            csr_der: csr.der().to_vec(),
            csr_pem: csr.pem()?,
        })
    }
}

/// A certificate authority that signs the leaves of one trust domain.
pub struct Authority {
    trust_domain: TrustDomain,
    key: KeyPair,
    cert_pem: String,
    certificate: CertificateDer<'static>,
    /// PEM of what has to follow a leaf: our certificate and those above it, as far as they are not roots, and the
    /// cross-certificates.
    intermediates_pem: String,
    not_before: SystemTime,
    not_after: SystemTime,
}

impl Authority {
    /// Creates a self-signed authority (P-256, ten years). It carries no name constraints, because rustls refuses
    /// chains with constraints on URIs.
    ///
    /// # Errors
    /// No randomness is available.
    pub fn generate(trust_domain: &TrustDomain) -> Result<Self, Error> {
        Self::generate_for(trust_domain, AUTHORITY_LIFETIME)
    }

    /// As [`Authority::generate`], valid for `lifetime`.
    ///
    /// # Errors
    /// No randomness.
    pub fn generate_for(trust_domain: &TrustDomain, lifetime: Duration) -> Result<Self, Error> {
        let key = KeyPair::generate()?;
        let now = SystemTime::now();
        let mut params = CertificateParams::default();
        params.not_before = (now - backdate(lifetime)).into();
        params.not_after = (now + lifetime).into();
        params.distinguished_name = DistinguishedName::new();
        params
            .distinguished_name
            .push(DnType::CommonName, format!("RemoteProcess authority of {trust_domain}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key)?;
        Self::from_pem(&certificate.pem(), &key.serialize_pem(), trust_domain)
    }

    /// Reads an authority from its PEM texts. The first certificate is the one that signs; an intermediate is followed
    /// by those above it.
    ///
    /// # Errors
    /// Text that does not decode, a certificate that may not sign, or a key that is not its key.
    pub fn from_pem(cert_pem: &str, key_pem: &str, trust_domain: &TrustDomain) -> Result<Self, Error> {
        let key = KeyPair::from_pem(key_pem).map_err(|_| Error::Pem {
            what: "PKCS#8 private key",
        })?;
        let chain = CertificateDer::pem_slice_iter(cert_pem.as_bytes())
            .collect::<Result<Vec<_>, _>>()
            .map_err(|_| Error::Pem { what: "certificate" })?;
        let certificate = chain.first().cloned().ok_or(Error::Pem { what: "certificate" })?;
        let (_, parsed) = X509Certificate::from_der(&certificate).map_err(|e| Error::Certificate(e.to_string()))?;
        if !parsed.is_ca() {
            return Err(Error::Authority("its certificate is not a CA's"));
        }
        if parsed.public_key().raw != key.subject_public_key_info() {
            return Err(Error::Authority("the key is not the key of its certificate"));
        }
        let may_sign = parsed.key_usage().map_err(|e| Error::Certificate(e.to_string()))?;
        if may_sign.is_some_and(|usage| !usage.value.key_cert_sign()) {
            return Err(Error::Authority("its certificate may not sign others (key usage)"));
        }
        let (not_before, not_after) = certificate::validity(&certificate)?;
        Ok(Self {
            trust_domain: trust_domain.clone(),
            key,
            cert_pem: cert_pem.to_owned(),
            intermediates_pem: chain
                .iter()
                .filter(|c| !is_self_signed(c))
                .map(certificate::pem)
                .collect(),
            certificate,
            not_before,
            not_after,
        })
    }

    /// Sends `cross_pem` behind each leaf from now on: certificates of [`Authority::cross_sign`], the newest first.
    #[must_use]
    pub fn with_cross_certificates(mut self, cross_pem: &str) -> Self {
        self.intermediates_pem.push_str(cross_pem);
        self
    }

    /// A certificate for the key of `next`, signed by this authority, PEM. A peer that trusts this authority alone accepts
    /// leaves of `next` when it follows them.
    ///
    /// # Errors
    /// This authority has expired, or the name of `next` cannot be written.
    pub fn cross_sign(&self, next: &Self) -> Result<String, Error> {
        self.check_time(SystemTime::now())?;
        let mut params = CertificateParams::default();
        params.not_before = next.not_before.into();
        params.not_after = next.not_after.min(self.not_after).into();
        params.distinguished_name = subject_of(&next.certificate)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(CROSS_PATH_LENGTH));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.use_authority_key_identifier_extension = true;
        let issuer = Issuer::from_ca_cert_der(&self.certificate, &self.key)?;
        Ok(params.signed_by(&next.key, &issuer)?.pem())
    }

    /// The certificate (and those above it, for an intermediate), PEM.
    pub fn cert_pem(&self) -> &str {
        &self.cert_pem
    }

    /// The certificate that signs, alone, PEM. Members trust this one and none above it: others may have certificates of
    /// the same root.
    pub fn anchor_pem(&self) -> String {
        certificate::pem(&self.certificate)
    }

    /// The private key, PKCS#8 PEM.
    pub fn key_pem(&self) -> String {
        self.key.serialize_pem()
    }

    /// Since when it may sign.
    pub fn not_before(&self) -> SystemTime {
        self.not_before
    }

    /// From when on nothing that it signed is valid.
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// The trust domain it signs for.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// Signs the key of a request (PKCS#10 DER) for `role` and ignores all else in the request. The leaf is valid for
    /// `lifetime`, or as long as the authority if that is shorter. Returns the chain, PEM.
    ///
    /// # Errors
    /// A request that does not decode, does not prove its key, or has another kind of key than P-256; a user's role
    /// without a user or another role with one.
    pub fn sign_csr_der(
        &self,
        csr: &[u8],
        role: &Role,
        user: Option<&User>,
        lifetime: Duration,
    ) -> Result<String, Error> {
        let (rest, request) =
            X509CertificationRequest::from_der(csr).map_err(|_| Error::Request("it does not decode".to_owned()))?;
        if !rest.is_empty() {
            return Err(Error::Request("bytes follow it".to_owned()));
        }
        request
            .verify_signature()
            .map_err(|_| Error::Request("it does not prove its key".to_owned()))?;
        let key = SubjectPublicKeyInfo::from_der(request.certification_request_info.subject_pki.raw)
            .map_err(|_| Error::Request("its key is not P-256".to_owned()))?;
        if key.algorithm() != &rcgen::PKCS_ECDSA_P256_SHA256 {
            return Err(Error::Request("its key is not P-256".to_owned()));
        }
        self.sign(&key, role, user, lifetime)
    }

    /// Generates a key and signs it. Returns the chain and the key, PEM.
    ///
    /// # Errors
    /// No randomness is available, or the authority has expired.
    pub fn issue(&self, role: &Role, user: Option<&User>, lifetime: Duration) -> Result<(String, String), Error> {
        let key = KeyPair::generate()?;
        Ok((self.sign(&key, role, user, lifetime)?, key.serialize_pem()))
    }

    fn sign(
        &self,
        key: &impl PublicKeyData,
        role: &Role,
        user: Option<&User>,
        lifetime: Duration,
    ) -> Result<String, Error> {
        let now = SystemTime::now();
        self.check_time(now)?;
        let lifetime = lifetime.min(self.not_after.duration_since(now).unwrap_or_default());
        let params = leaf_params(&self.trust_domain, role, user, now, lifetime)?;
        let issuer = Issuer::from_ca_cert_der(&self.certificate, &self.key)?;
        let leaf = params.signed_by(key, &issuer)?;
        Ok(leaf.pem() + &self.intermediates_pem)
    }

    fn check_time(&self, now: SystemTime) -> Result<(), Error> {
        if self.not_after <= now {
            return Err(Error::Authority("its certificate has expired"));
        }
        Ok(())
    }
}

fn backdate(lifetime: Duration) -> Duration {
    BACKDATE.min(lifetime / 12)
}

fn leaf_params(
    trust_domain: &TrustDomain,
    role: &Role,
    user: Option<&User>,
    now: SystemTime,
    lifetime: Duration,
) -> Result<CertificateParams, Error> {
    role.validate()?;
    let mut params = CertificateParams::default();
    params.not_before = (now - backdate(lifetime)).into();
    params.not_after = (now + lifetime).into();
    params.distinguished_name = subject(role, user)?;
    params
        .subject_alt_names
        .push(SanType::URI(role.uri(trust_domain).try_into()?));
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    if let Some(name) = role.server_name(trust_domain) {
        params.subject_alt_names.push(SanType::DnsName(name.try_into()?));
        params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
    }
    Ok(params)
}

/// Groups and the rest go as JSON into one O: group names may contain any character, and rcgen writes only one
/// attribute of each kind.
fn subject(role: &Role, user: Option<&User>) -> Result<DistinguishedName, Error> {
    let mut name = DistinguishedName::new();
    match (role, user) {
        (Role::User, Some(user)) if !user.name.is_empty() => {
            let rest =
                serde_json::to_string(user).map_err(|_| Error::Request("the user cannot be written".to_owned()))?;
            name.push(DnType::CommonName, user.name.as_str());
            name.push(DnType::OrganizationName, rest);
        }
        (Role::Operator | Role::Agent { .. }, None) => name.push(DnType::CommonName, role_name(role)),
        _ => {
            return Err(Error::Request(
                "a user's certificate, and no other, names a user".to_owned(),
            ));
        }
    }
    Ok(name)
}

/// The subject of a certificate, as rcgen repeats it in the issuer of what it signs.
fn subject_of(certificate: &CertificateDer<'_>) -> Result<DistinguishedName, Error> {
    let odd = || Error::Authority("its subject cannot be repeated in another certificate");
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(|e| Error::Certificate(e.to_string()))?;
    let mut name = DistinguishedName::new();
    for attribute in parsed.subject().iter_attributes() {
        let kind: Vec<u64> = attribute.attr_type().iter().ok_or_else(odd)?.collect();
        let text = attribute.as_str().map_err(|_| odd())?;
        let value = match attribute.attr_value().tag() {
            Tag::PrintableString => DnValue::PrintableString(text.try_into()?),
            Tag::Utf8String => DnValue::Utf8String(text.to_owned()),
            _ => return Err(odd()),
        };
        name.push(DnType::from_oid(&kind), value);
    }
    Ok(name)
}

/// Only for people who look at a certificate; nothing is decided by it.
fn role_name(role: &Role) -> &'static str {
    match role {
        Role::Operator => "operator",
        Role::Agent { .. } => "agent",
        Role::User => "user",
    }
}

fn is_self_signed(certificate: &CertificateDer<'_>) -> bool {
    X509Certificate::from_der(certificate)
        .is_ok_and(|(_, c)| c.subject() == c.issuer() && c.verify_signature(None).is_ok())
}
