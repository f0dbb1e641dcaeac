//! The Secrets that the operator mounts for the bridge, and TLS from them.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use remoteprocess_api::bridge::{BridgeReason, BrokerTls, CA, CLIENT_TLS, CREDENTIALS};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::AsyncReadExt;

use super::SourceError;

/// Largest key of a Secret that is read, in bytes: a Secret has at most 1 MiB.
const MAX_KEY_BYTES: u64 = 1 << 20;

/// Directories in which the Secrets are mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Secrets {
    credentials: PathBuf,
    ca: PathBuf,
    client_tls: PathBuf,
}

impl Default for Secrets {
    fn default() -> Self {
        Self {
            credentials: CREDENTIALS.into(),
            ca: CA.into(),
            client_tls: CLIENT_TLS.into(),
        }
    }
}

impl Secrets {
    /// With the directories `credentials`, `ca` and `tls` in another one.
    pub fn under(directory: &Path) -> Self {
        Self {
            credentials: directory.join("credentials"),
            ca: directory.join("ca"),
            client_tls: directory.join("tls"),
        }
    }

    /// A key of the Secret with the credentials, without the line break at its end; `None` if the Secret lacks it.
    ///
    /// # Errors
    /// The key is not UTF-8, or cannot be read.
    pub async fn credential(&self, key: &str) -> Result<Option<String>, SourceError> {
        let Some(value) = read(&self.credentials.join(key)).await? else {
            return Ok(None);
        };
        let text = String::from_utf8(value).map_err(|_| invalid(format!("the key {key} of the Secret is not text")))?;
        Ok(Some(text.trim_end_matches(['\r', '\n']).to_owned()))
    }

    /// A key of the Secret with the credentials.
    ///
    /// # Errors
    /// As [`Secrets::credential`]; or the Secret lacks the key.
    pub async fn required_credential(&self, key: &str) -> Result<String, SourceError> {
        let value = self.credential(key).await?;
        value.ok_or_else(|| invalid(format!("the Secret with the credentials has no key {key}")))
    }

    /// Certificates to trust, if the trigger names a Secret with them.
    pub(crate) async fn ca(&self) -> Result<Vec<CertificateDer<'static>>, SourceError> {
        certificates(&required(&self.ca.join("ca.crt")).await?, "ca.crt")
    }

    /// The own certificate and its key.
    pub(crate) async fn client_certificate(
        &self,
    ) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), SourceError> {
        let chain = certificates(&required(&self.client_tls.join("tls.crt")).await?, "tls.crt")?;
        let key = PrivateKeyDer::from_pem_slice(&required(&self.client_tls.join("tls.key")).await?);
        let key = key.map_err(|error| invalid(format!("tls.key of the Secret is no private key in PEM: {error}")))?;
        Ok((chain, key))
    }
}

/// How to connect to a broker by TLS: trusts the `ca.crt` that the trigger names, or else the public authorities, and
/// shows the certificate that it names, if it does.
///
/// # Errors
/// [`BridgeReason::InvalidSecret`].
pub async fn tls_config(tls: Option<&BrokerTls>, secrets: &Secrets) -> Result<Arc<ClientConfig>, SourceError> {
    let mut roots = RootCertStore::empty();
    if tls.is_some_and(|tls| tls.ca_secret_name.is_some()) {
        for certificate in secrets.ca().await? {
            let added = roots.add(certificate);
            added.map_err(|error| invalid(format!("ca.crt of the Secret cannot be trusted: {error}")))?;
        }
    } else {
        roots.add_parsable_certificates(webpki_root_certs::TLS_SERVER_ROOT_CERTS.iter().cloned());
    }
    let config = ClientConfig::builder().with_root_certificates(roots);
    if tls.is_none_or(|tls| tls.client_certificate_secret_name.is_none()) {
        return Ok(Arc::new(config.with_no_client_auth()));
    }
    let (chain, key) = secrets.client_certificate().await?;
    let config = config.with_client_auth_cert(chain, key);
    let config =
        config.map_err(|error| invalid(format!("tls.crt and tls.key of the Secret cannot be used: {error}")))?;
    Ok(Arc::new(config))
}

fn certificates(pem: &[u8], key: &str) -> Result<Vec<CertificateDer<'static>>, SourceError> {
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let read = read.map_err(|error| invalid(format!("{key} of the Secret is not PEM: {error}")))?;
    if read.is_empty() {
        return Err(invalid(format!("{key} of the Secret has no certificate")));
    }
    Ok(read)
}

async fn required(path: &Path) -> Result<Vec<u8>, SourceError> {
    let key = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let value = read(path).await?;
    value.ok_or_else(|| invalid(format!("the Secret has no key {key}")))
}

/// A file, if there is one.
async fn read(path: &Path) -> Result<Option<Vec<u8>>, SourceError> {
    let failed = |error: io::Error| invalid(format!("{}: {error}", path.display()));
    let file = match tokio::fs::File::open(path).await {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let mut value = Vec::new();
    file.take(MAX_KEY_BYTES).read_to_end(&mut value).await.map_err(failed)?;
    Ok(Some(value))
}

fn invalid(message: String) -> SourceError {
    SourceError::new(BridgeReason::InvalidSecret, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_missing_key_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let secrets = Secrets::under(directory.path());
        assert_eq!(secrets.credential("token").await, Ok(None));
        let error = secrets.required_credential("token").await.unwrap_err();
        assert_eq!(error.reason, BridgeReason::InvalidSecret);
        assert!(error.message.contains("no key token"), "{error}");
    }

    #[tokio::test]
    async fn a_line_break_at_the_end_is_no_part_of_a_password() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("credentials")).unwrap();
        std::fs::write(directory.path().join("credentials/password"), " pass word\r\n").unwrap();
        let secrets = Secrets::under(directory.path());
        assert_eq!(secrets.credential("password").await, Ok(Some(" pass word".to_owned())));
    }

    #[tokio::test]
    async fn certificates_that_are_none_are_refused_with_a_sentence() {
        remoteprocess_tls::install_crypto_provider();
        let directory = tempfile::tempdir().unwrap();
        let secrets = Secrets::under(directory.path());
        let tls = BrokerTls {
            ca_secret_name: Some("ca".into()),
            client_certificate_secret_name: None,
        };
        let error = tls_config(Some(&tls), &secrets).await.unwrap_err();
        assert!(error.message.contains("no key ca.crt"), "{error}");
        std::fs::create_dir(directory.path().join("ca")).unwrap();
        std::fs::write(directory.path().join("ca/ca.crt"), "hello").unwrap();
        let error = tls_config(Some(&tls), &secrets).await.unwrap_err();
        assert!(error.message.contains("no certificate"), "{error}");
        assert!(tls_config(None, &secrets).await.is_ok(), "the public authorities");
    }
}
