//! The agent's identity: a key that never leaves memory, certified by the relay for this pod.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use remoteprocess_proto::PROTOCOL;
use remoteprocess_proto::v1::EnrollRequest;
use remoteprocess_proto::v1::enrollment_client::EnrollmentClient;
use remoteprocess_tls::{Dialer, Identity, KeyRequest, Role};
use serde::{Deserialize, Serialize};

use crate::args::Config;
use crate::backoff::Backoff;
use crate::spool::record::{self, Record};

/// Limit of one enrollment.
const LIMIT: Duration = Duration::from_secs(10);
/// Shortest wait between two attempts to renew a certificate.
const RENEW_FLOOR: Duration = Duration::from_secs(1);

/// Why an enrollment failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The projected token is not there.
    #[error("read the token")]
    Token(#[source] std::io::Error),
    /// No connection, or a certificate that is not what it should be.
    #[error("TLS with the enrollment listener")]
    Tls(#[from] remoteprocess_tls::Error),
    /// The relay refuses.
    #[error("the relay refuses to enroll: {}", .0.message())]
    Refused(#[from] Box<tonic::Status>),
    /// The relay does not answer.
    #[error("the enrollment listener did not answer in time")]
    Timeout,
}

/// Obtains the first and all later certificates.
#[derive(Debug)]
pub struct Enrollment {
    config: Arc<Config>,
    trust: Trust,
}

/// The CAs to trust: those that the relay sent last, or initially those in the pod's spec. The spool keeps them over a
/// restart of the agent, because the spec of the pod still has the CAs of the time when it was created.
#[derive(Debug)]
struct Trust {
    spool: PathBuf,
    bundle: Mutex<String>,
}

/// All CAs to trust, PEM.
#[derive(Serialize, Deserialize)]
struct Bundle(String);

impl Record for Bundle {
    const NAME: &'static str = "bundle";
}

impl Trust {
    fn load(spool: &Path, first: &str) -> Self {
        let stored = record::load(spool).unwrap_or_else(|error| {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "the stored CAs cannot be read"
            );
            None
        });
        let bundle = stored.map_or_else(|| first.to_owned(), |Bundle(stored)| stored);
        Self {
            spool: spool.to_owned(),
            bundle: Mutex::new(bundle),
        }
    }

    fn get(&self) -> String {
        self.bundle.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn keep(&self, bundle: String) {
        if self.get() == bundle {
            return;
        }
        self.bundle
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone_from(&bundle);
        let spool = self.spool.clone();
        let stored = tokio::task::spawn_blocking(move || record::store(&spool, &Bundle(bundle))).await;
        if let Ok(Err(error)) = stored {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "the CAs to trust are not stored; a restart of the agent begins with older ones"
            );
        }
    }
}

struct Certified {
    chain: String,
    key: String,
    bundle: String,
}

impl Enrollment {
    /// Enrolls according to `config`.
    pub fn new(config: Arc<Config>) -> Self {
        let trust = Trust::load(&config.spool, &config.ca_bundle);
        Self { config, trust }
    }

    /// Enrolls, trying until it succeeds.
    pub async fn first(&self) -> Arc<Identity> {
        let mut backoff = Backoff::default();
        loop {
            match self.identity().await {
                Ok(identity) => return identity,
                Err(error) => warn(&error),
            }
            backoff.wait().await;
        }
    }

    async fn identity(&self) -> Result<Arc<Identity>, Error> {
        let Certified { chain, key, bundle } = self.certify().await?;
        let identity = Identity::new(&chain, &key, &bundle, &self.config.trust_domain)?;
        self.trust.keep(bundle).await;
        tracing::info!("enrolled");
        Ok(identity)
    }

    /// Puts a fresh certificate into `identity`, once.
    ///
    /// # Errors
    /// When there is none; the old one stays in use.
    pub async fn renew(&self, identity: &Identity) -> Result<(), Error> {
        let Certified { chain, key, bundle } = self.certify().await?;
        identity.replace(&chain, &key, &bundle)?;
        self.trust.keep(bundle).await;
        tracing::info!("certificate renewed");
        Ok(())
    }

    /// Keeps `identity` fresh. Never returns.
    pub async fn keep_fresh(&self, identity: &Identity) {
        loop {
            let left = identity.renew_at().duration_since(SystemTime::now());
            tokio::time::sleep(left.unwrap_or_default().max(RENEW_FLOOR)).await;
            let mut backoff = Backoff::default();
            while let Err(error) = self.renew(identity).await {
                warn(&error);
                backoff.wait().await;
            }
        }
    }

    async fn certify(&self) -> Result<Certified, Error> {
        tokio::time::timeout(LIMIT, self.ask())
            .await
            .unwrap_or(Err(Error::Timeout))
    }

    async fn ask(&self) -> Result<Certified, Error> {
        let config = &self.config;
        // Read each time: the kubelet renews it.
        let token = tokio::fs::read_to_string(&config.token_file)
            .await
            .map_err(Error::Token)?;
        let request = KeyRequest::generate()?;
        let dialer = Dialer::anonymous(&self.trust.get(), &config.trust_domain)?;
        let channel = dialer.connect(&config.relay_enroll, &Role::Operator).await?;
        let response = EnrollmentClient::new(channel)
            .enroll(EnrollRequest {
                protocol: PROTOCOL,
                token: token.trim().to_owned(),
                csr: request.csr_der.into(),
                process_uid: config.process_uid.clone(),
                attempt: config.attempt,
            })
            .await
            .map_err(Box::new)?
            .into_inner();
        Ok(Certified {
            chain: response.certificate_chain,
            key: request.key_pem,
            bundle: response.bundle,
        })
    }
}

fn warn(error: &Error) {
    tracing::warn!(error = error as &dyn std::error::Error, "not enrolled; trying again");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_restart_of_the_agent_remembers_the_newest_cas() {
        let spool = tempfile::tempdir().expect("a directory");
        let trust = Trust::load(spool.path(), "of the pod");
        assert_eq!(trust.get(), "of the pod");
        trust.keep("of the relay".into()).await;
        assert_eq!(Trust::load(spool.path(), "of the pod").get(), "of the relay");
        std::fs::write(spool.path().join(Bundle::NAME), [0xff]).expect("written");
        assert_eq!(
            Trust::load(spool.path(), "of the pod").get(),
            "of the pod",
            "a damaged file does no harm"
        );
    }
}
