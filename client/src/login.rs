//! The client certificate: a key of our own, a `CertificateSigningRequest` (or the login of a machine), the operator's
//! signature, and a file for the next call. The API server says who we are; nothing here does.

mod machine;

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime};

use k8s_openapi::ByteString;
use k8s_openapi::api::authentication::v1::{SelfSubjectReview, UserInfo};
use k8s_openapi::api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestSpec};
use kube::Api;
use kube::api::{ObjectMeta, PostParams};
use remoteprocess_api::names;
use remoteprocess_tls::{Identity, KeyRequest};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::time::Instant;

use crate::cluster::{Cluster, Rule};
use crate::dial::DialError;
use crate::retry::innermost;
use crate::trust::Trust;

/// Time limit for the operator's signature.
const SIGN_LIMIT: Duration = Duration::from_secs(30);
/// The requested lifetime of the certificate; the operator may grant less.
const LIFETIME_SECONDS: i32 = 3600;

/// A certificate that is valid for a while: the cached one if `may_be_cached`, otherwise a new one, which is cached.
///
/// # Errors
/// A missing right, a refusal, or no signature in time; each with its fix.
pub async fn certificate(cluster: &Cluster, trust: &Trust, may_be_cached: bool) -> Result<Arc<Identity>, DialError> {
    let token = machine::token()?;
    let subject = match &token {
        Some(token) => machine::subject(token),
        None => person(&user(cluster).await?),
    };
    let path = cache_path(cluster, trust, &subject);
    if let Some(identity) = path
        .as_deref()
        .filter(|_| may_be_cached)
        .and_then(|path| load(path, trust, SystemTime::now()))
    {
        return Ok(identity);
    }
    let certificate = request(cluster, trust).await?;
    let identity = certificate.identity(trust)?;
    if let Some(path) = path {
        // Without a cache (a read-only home, for example) each call requests a certificate of its own, which is only
        // slower.
        let _ = store(&path, &certificate.chain, &certificate.key);
    }
    Ok(identity)
}

/// A new certificate, which is not cached: with the token of a machine, if there is one, otherwise by a
/// `CertificateSigningRequest`.
///
/// # Errors
/// As [`certificate`].
pub async fn request(cluster: &Cluster, trust: &Trust) -> Result<Certificate, DialError> {
    let request = KeyRequest::generate().map_err(|error| DialError::Refused(innermost(&error)))?;
    let chain = match machine::token()? {
        Some(token) => machine::sign(trust, &token, &request).await?,
        None => sign(cluster, &request.csr_pem).await?,
    };
    let key = request.key_pem;
    Ok(Certificate { chain, key })
}

/// A client certificate and its key, PEM.
pub struct Certificate {
    /// The certificate, and those between it and the CA.
    pub chain: String,
    /// The private key.
    pub key: String,
}

impl Certificate {
    /// The identity that it proves.
    ///
    /// # Errors
    /// The operator has signed something else.
    pub fn identity(&self, trust: &Trust) -> Result<Arc<Identity>, DialError> {
        Identity::new(&self.chain, &self.key, &trust.bundle, &trust.domain).map_err(|error| {
            DialError::Unreachable(format!(
                "the certificate that the operator signed is of no use: {}",
                innermost(&error)
            ))
        })
    }
}

/// Who we are according to the API server.
///
/// # Errors
/// It does not say.
pub async fn user(cluster: &Cluster) -> Result<UserInfo, DialError> {
    let api: Api<SelfSubjectReview> = Api::all(cluster.client.clone());
    let rule = Rule::connect("authentication.k8s.io", "selfsubjectreviews", "create");
    let review = api
        .create(&PostParams::default(), &SelfSubjectReview::default())
        .await
        .map_err(|error| cluster.dial_error(&error, &rule, "ask who you are"))?;
    Ok(review.status.and_then(|status| status.user_info).unwrap_or_default())
}

async fn sign(cluster: &Cluster, csr_pem: &str) -> Result<String, DialError> {
    let api: Api<CertificateSigningRequest> = Api::all(cluster.client.clone());
    let rule = Rule::connect("certificates.k8s.io", "certificatesigningrequests", "create, get");
    let what = "ask for a client certificate";
    let created = api
        .create(&PostParams::default(), &signing_request(csr_pem))
        .await
        .map_err(|error| cluster.dial_error(&error, &rule, what))?;
    let name = created.metadata.name.unwrap_or_default();
    let deadline = Instant::now() + SIGN_LIMIT;
    let mut wait = Duration::from_millis(20);
    loop {
        match api.get(&name).await {
            Ok(current) => match verdict(&current) {
                Some(answer) => return answer,
                None if Instant::now() >= deadline => return Err(DialError::Unreachable(unsigned(cluster, &name))),
                None => {}
            },
            // The API server may fail temporarily while we wait; a refusal is final.
            Err(error) => match cluster.dial_error(&error, &rule, what) {
                DialError::Unreachable(_) if Instant::now() < deadline => {}
                refusal => return Err(refusal),
            },
        }
        tokio::time::sleep(wait).await;
        wait = (wait * 3 / 2).min(Duration::from_millis(500));
    }
}

fn signing_request(csr_pem: &str) -> CertificateSigningRequest {
    CertificateSigningRequest {
        metadata: ObjectMeta {
            generate_name: Some("rproc-".into()),
            ..ObjectMeta::default()
        },
        spec: CertificateSigningRequestSpec {
            request: ByteString(csr_pem.as_bytes().to_vec()),
            signer_name: names::CLIENT_SIGNER.into(),
            usages: Some(vec!["digital signature".into(), "client auth".into()]),
            expiration_seconds: Some(LIFETIME_SECONDS),
            ..CertificateSigningRequestSpec::default()
        },
        status: None,
    }
}

/// The chain, the refusal, or nothing yet.
fn verdict(request: &CertificateSigningRequest) -> Option<Result<String, DialError>> {
    let status = request.status.as_ref()?;
    for condition in status.conditions.iter().flatten() {
        if condition.type_ == "Denied" || condition.type_ == "Failed" {
            let why = condition
                .message
                .as_deref()
                .or(condition.reason.as_deref())
                .unwrap_or("no reason given");
            return Some(Err(DialError::Refused(format!(
                "the operator gives no client certificate: {why}"
            ))));
        }
    }
    let certificate = status
        .certificate
        .as_ref()
        .filter(|certificate| !certificate.0.is_empty())?;
    Some(String::from_utf8(certificate.0.clone()).map_err(|_| {
        DialError::Refused("the client certificate is not text: another signer than the operator's wrote it".into())
    }))
}

fn unsigned(cluster: &Cluster, name: &str) -> String {
    format!(
        "CertificateSigningRequest {name} was not signed within {} s. Is the operator running? See: kubectl -n {} get pods",
        SIGN_LIMIT.as_secs(),
        cluster.operator_namespace
    )
}

/// What a certificate of this user is for.
fn person(user: &UserInfo) -> Value {
    let mut groups = user.groups.clone().unwrap_or_default();
    groups.sort();
    json!([user.username, user.uid, user.extra, groups])
}

/// `<hash>.pem` in the cache; the hash covers cluster, CAs and user (with groups, or what a token says), so that a
/// certificate is never used for another user or another installation.
fn cache_path(cluster: &Cluster, trust: &Trust, subject: &Value) -> Option<PathBuf> {
    let folder = cluster.cache.as_ref()?;
    let parts = json!([
        cluster.url,
        cluster.operator_namespace,
        subject,
        trust.bundle,
        trust.domain.as_str()
    ]);
    let name = hex::encode(&Sha256::digest(parts.to_string())[..16]);
    Some(folder.join(format!("{name}.pem")))
}

/// The stored certificate, unless it is time for the next one.
fn load(path: &Path, trust: &Trust, now: SystemTime) -> Option<Arc<Identity>> {
    let metadata = fs::symlink_metadata(path).ok()?;
    let is_ours = metadata.is_file() && metadata.uid() == rustix::process::geteuid().as_raw();
    if !is_ours || metadata.permissions().mode() & 0o077 != 0 {
        return None;
    }
    let text = fs::read_to_string(path).ok()?;
    let (key, chain) = text.split_at(text.find("-----BEGIN CERTIFICATE-----")?);
    let identity = Identity::new(chain, key, &trust.bundle, &trust.domain).ok()?;
    (now < identity.renew_at()).then_some(identity)
}

fn store(path: &Path, chain: &str, key: &str) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::DirBuilder::new().recursive(true).create(folder)?;
    fs::set_permissions(folder, fs::Permissions::from_mode(0o700))?;
    // Two streams of one program may store at the same time.
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let temporary = folder.join(format!(".{}-{number}.tmp", std::process::id()));
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&temporary)?;
    file.write_all(key.as_bytes())?;
    file.write_all(chain.as_bytes())?;
    fs::rename(&temporary, path)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use remoteprocess_tls::{Authority, Role, User};

    fn trust(authority: &Authority) -> Trust {
        Trust {
            bundle: authority.cert_pem().to_owned(),
            domain: authority.trust_domain().clone(),
            server: None,
            login: None,
        }
    }

    fn alice() -> User {
        User {
            name: "alice".into(),
            uid: String::new(),
            groups: vec!["devs".into()],
            extra: BTreeMap::default(),
        }
    }

    fn authority() -> Authority {
        remoteprocess_tls::install_crypto_provider();
        Authority::generate(&"remoteprocess.local".parse().unwrap()).unwrap()
    }

    #[test]
    fn a_stored_certificate_is_used_until_it_nears_its_end() {
        let authority = authority();
        let user = alice();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rproc/a.pem");
        let (chain, key) = authority
            .issue(&Role::User, Some(&user), Duration::from_secs(3600))
            .unwrap();
        store(&path, &chain, &key).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        for (minutes, is_used) in [(0, true), (30, true), (36, false), (60, false)] {
            let now = SystemTime::now() + Duration::from_secs(minutes * 60);
            assert_eq!(
                load(&path, &trust(&authority), now).is_some(),
                is_used,
                "after {minutes} min"
            );
        }
    }

    #[test]
    fn a_file_that_others_can_read_or_of_another_authority_is_not_used() {
        let ours = authority();
        let user = alice();
        let (chain, key) = ours.issue(&Role::User, Some(&user), Duration::from_secs(3600)).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.pem");
        store(&path, &chain, &key).unwrap();
        assert!(load(&path, &trust(&authority()), SystemTime::now()).is_none());
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(load(&path, &trust(&ours), SystemTime::now()).is_none());
    }

    #[test]
    fn a_denied_request_is_reported() {
        let request: CertificateSigningRequest = serde_json::from_value(serde_json::json!({
            "metadata": {}, "spec": {"request": "", "signerName": ""},
            "status": {"conditions": [{"type": "Denied", "status": "True", "message": "no such user"}]},
        }))
        .unwrap();
        let refusal = verdict(&request).unwrap().unwrap_err();
        assert_eq!(
            refusal.to_string(),
            "the operator gives no client certificate: no such user"
        );
        assert!(verdict(&signing_request("x")).is_none());
    }
}
