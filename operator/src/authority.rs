//! The certificate authority of the installation: the CA, the published bundle and the signing of requests.
//!
//! Every replica holds the CA: the first one creates it, the others read it. The Secret and the ConfigMap belong to no
//! release and have no owner, so that running agents find the same CA after a re-installation.

pub mod csr;
pub mod guard;
pub mod metrics;
mod publish;
pub mod rate;
mod secret;

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwap;
use kube::Client;
use remoteprocess_api::names;
use remoteprocess_tls::{Authority, Identity, Role, TrustDomain, User, bundle};
use tokio_util::sync::CancellationToken;

/// Life of the operator's own leaf.
const OPERATOR_LIFETIME: Duration = Duration::from_secs(24 * 3600);

/// Lifetime of an agent's leaf.
const AGENT_LIFETIME: Duration = Duration::from_secs(3600);

/// Maximum lifetime of a user's leaf.
const USER_LIFETIME: Duration = Duration::from_secs(3600);

/// How long a CA is trusted after another one replaced it: longer than a leaf of an agent or a user lives. The operator's
/// own leaf is renewed at once.
const FORMER_LIFETIME: Duration = Duration::from_secs(2 * 3600);

/// How often the Secret and the ConfigMap are read: a new CA in the Secret is in use after this time at the latest.
const REFRESH: Duration = Duration::from_secs(60);

/// Where the authority keeps its objects, and what it tells clients.
#[derive(Clone, Debug)]
pub struct AuthorityConfig {
    /// Namespace of the release.
    pub namespace: String,
    /// Trust domain of all certificates.
    pub trust_domain: TrustDomain,
    /// `host:port` by which clients reach the relay from outside, where there is one.
    pub server: Option<String>,
}

/// What can go wrong with the authority.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API server refused a request or did not answer.
    #[error("the API server")]
    Kube(#[from] kube::Error),
    /// A certificate or key is invalid.
    #[error("a certificate")]
    Tls(#[from] remoteprocess_tls::Error),
    /// The Secret of the CA exists, but is unusable. It is never overwritten.
    #[error("the Secret {name} has no usable {key}")]
    Secret {
        /// Name of the Secret.
        name: &'static str,
        /// What is missing.
        key: &'static str,
    },
    /// The Secret of the CA is gone, but agents and clients trust the CA that was in it.
    #[error(
        "the Secret {} is gone, but its CA is published in the ConfigMap {}; restore the Secret from a backup, or \
         delete the ConfigMap to begin with a new CA, which no running process will trust",
        names::CA_SECRET,
        names::CONNECT_CONFIG_MAP
    )]
    Missing,
}

impl Error {
    /// A fixed word for metrics and Events.
    #[must_use]
    pub fn category(&self) -> &'static str {
        match self {
            Self::Kube(_) => "ApiServer",
            Self::Tls(_) => "Certificate",
            Self::Secret { .. } | Self::Missing => "Secret",
        }
    }
}

/// The loaded authority and the operator's own identity, both kept fresh by [`AuthorityHandle::run`].
pub struct AuthorityHandle {
    client: Client,
    config: AuthorityConfig,
    current: ArcSwap<Loaded>,
    identity: Arc<Identity>,
}

/// The CA as read from one version of the Secret, and the CAs before it.
struct Loaded {
    authority: Authority,
    /// The CAs that the Secret says to trust.
    own_bundle_pem: String,
    /// These, and the former CAs.
    bundle_pem: String,
    former: Vec<Former>,
}

/// The CAs that a former version of the Secret said to trust. Leaves signed by them may still be valid.
#[derive(Clone)]
struct Former {
    bundle_pem: String,
    until: SystemTime,
}

impl Loaded {
    /// Replaces this one by `next`: CAs that this one trusted stay trusted for as long as a leaf of theirs may live.
    fn succeeded_by(&self, next: Self, now: SystemTime) -> Result<Self, Error> {
        let mut former: Vec<Former> = self
            .former
            .iter()
            .filter(|former| now < former.until)
            .cloned()
            .collect();
        if self.own_bundle_pem != next.own_bundle_pem {
            former.push(Former {
                bundle_pem: self.own_bundle_pem.clone(),
                until: now + FORMER_LIFETIME,
            });
        }
        let texts = std::iter::once(&next.own_bundle_pem).chain(former.iter().map(|former| &former.bundle_pem));
        let bundle_pem = bundle(&texts.map(String::as_str).collect::<Vec<_>>())?;
        Ok(Self {
            bundle_pem,
            former,
            ..next
        })
    }
}

impl AuthorityHandle {
    /// Reads the CA from its Secret, or creates it if there never was one (of several replicas the first one wins),
    /// publishes the bundle and issues the operator's own leaf.
    ///
    /// # Errors
    /// The API server does not answer, the content of the Secret is unusable, or it is gone although its CA was
    /// published.
    pub async fn load_or_create(client: Client, config: AuthorityConfig) -> Result<Arc<Self>, Error> {
        let loaded = secret::load_or_create(&client, &config).await?;
        let (chain, key) = loaded.authority.issue(&Role::Operator, None, OPERATOR_LIFETIME)?;
        let identity = Identity::new(&chain, &key, &loaded.bundle_pem, &config.trust_domain)?;
        publish::publish(&client, &config, &loaded.bundle_pem).await?;
        Ok(Arc::new(Self {
            client,
            config,
            current: ArcSwap::from_pointee(loaded),
            identity,
        }))
    }

    /// The operator's own identity; it stays the same object while its certificate is renewed.
    #[must_use]
    pub fn identity(&self) -> Arc<Identity> {
        self.identity.clone()
    }

    /// All CAs that members trust now, PEM.
    #[must_use]
    pub fn bundle_pem(&self) -> String {
        self.current.load().bundle_pem.clone()
    }

    /// The trust domain of all certificates.
    #[must_use]
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.config.trust_domain
    }

    /// Signs the key of a request (PKCS#10 DER) for the agent of a pod. Returns the chain, PEM.
    ///
    /// # Errors
    /// A request that does not prove its key or has another kind of key than P-256.
    pub fn sign_agent(&self, csr: &[u8], namespace: &str, pod_uid: &str) -> Result<String, remoteprocess_tls::Error> {
        let role = Role::Agent {
            namespace: namespace.to_owned(),
            pod_uid: pod_uid.to_owned(),
        };
        self.current
            .load()
            .authority
            .sign_csr_der(csr, &role, None, AGENT_LIFETIME)
    }

    /// Signs the key of a request for a user, for at most an hour. Returns the chain, PEM.
    ///
    /// # Errors
    /// As [`AuthorityHandle::sign_agent`].
    pub fn sign_user(&self, csr: &[u8], user: &User, lifetime: Duration) -> Result<String, remoteprocess_tls::Error> {
        let lifetime = lifetime.min(USER_LIFETIME);
        self.current
            .load()
            .authority
            .sign_csr_der(csr, &Role::User, Some(user), lifetime)
    }

    /// Renews the leaf, reloads the CA from its Secret, and keeps the bundle published, until `shutdown`. Failures are
    /// logged and retried; what is in use stays in use.
    pub async fn run(&self, shutdown: CancellationToken) {
        loop {
            tokio::select! {
                () = tokio::time::sleep(self.pause()) => {}
                () = shutdown.cancelled() => return,
            }
            if let Err(error) = self.refresh().await {
                tracing::warn!(
                    category = error.category(),
                    error = &error as &dyn std::error::Error,
                    "the authority cannot be refreshed"
                );
            }
        }
    }

    /// How long to wait before the next refresh: shorter if the leaf is due earlier, but never a busy loop.
    fn pause(&self) -> Duration {
        let due = self
            .identity
            .renew_at()
            .duration_since(SystemTime::now())
            .unwrap_or_default();
        due.clamp(Duration::from_secs(1), REFRESH)
    }

    /// The leaf first: it needs no API server.
    async fn refresh(&self) -> Result<(), Error> {
        if self.identity.renew_at() <= SystemTime::now() {
            self.renew(&self.current.load())?;
        }
        let current = self.current.load_full();
        let found = secret::load_or_restore(&self.client, &self.config, &current).await?;
        let loaded = current.succeeded_by(found, SystemTime::now())?;
        let is_news =
            current.bundle_pem != loaded.bundle_pem || current.authority.cert_pem() != loaded.authority.cert_pem();
        if is_news {
            self.renew(&loaded)?;
            tracing::info!("the CA, or what is trusted besides it, has changed");
            self.current.store(Arc::new(loaded));
        }
        publish::publish(&self.client, &self.config, &self.bundle_pem()).await
    }

    fn renew(&self, loaded: &Loaded) -> Result<(), Error> {
        let (chain, key) = loaded.authority.issue(&Role::Operator, None, OPERATOR_LIFETIME)?;
        Ok(self.identity.replace(&chain, &key, &loaded.bundle_pem)?)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::{
        collections::HashMap,
        sync::{Mutex, PoisonError},
    };

    use http::Method;
    use remoteprocess_tls::KeyRequest;
    use serde_json::Value;

    use super::*;
    use crate::fake_api::{self, Call, refusal};

    const SECRET: &str = "/api/v1/namespaces/remoteprocess-system/secrets/remoteprocess-ca";
    const CONFIG_MAP: &str = "/api/v1/namespaces/remoteprocess-system/configmaps/remoteprocess-connect";

    type Store = Arc<Mutex<HashMap<String, Value>>>;

    fn config() -> AuthorityConfig {
        AuthorityConfig {
            namespace: "remoteprocess-system".into(),
            trust_domain: "test.local".parse().expect("a domain"),
            server: Some("relay.example:8443".into()),
        }
    }

    /// An API server that stores what is posted or applied, by path.
    fn stored(store: &Store, call: &Call) -> (u16, Value) {
        let mut objects = store.lock().unwrap_or_else(PoisonError::into_inner);
        match call.method {
            Method::GET => objects
                .get(&call.path)
                .map_or_else(|| refusal(404, "NotFound"), |o| (200, o.clone())),
            Method::POST => {
                let path = format!(
                    "{}/{}",
                    call.path,
                    call.body["metadata"]["name"].as_str().expect("a name")
                );
                if objects.contains_key(&path) {
                    return refusal(409, "AlreadyExists");
                }
                objects.insert(path, call.body.clone());
                (201, call.body.clone())
            }
            _ => {
                objects.insert(call.path.clone(), call.body.clone());
                (200, call.body.clone())
            }
        }
    }

    /// An authority over a fake API server, for tests of other modules.
    pub(crate) async fn handle() -> Arc<AuthorityHandle> {
        handle_of(&Store::default()).await.expect("an authority")
    }

    async fn handle_of(store: &Store) -> Result<Arc<AuthorityHandle>, Error> {
        remoteprocess_tls::install_crypto_provider();
        let store = store.clone();
        let client = fake_api::client(move |call| stored(&store, &call));
        AuthorityHandle::load_or_create(client, config()).await
    }

    #[tokio::test]
    async fn the_first_replica_makes_the_ca_and_the_others_read_it() {
        remoteprocess_tls::install_crypto_provider();
        let store = Store::default();
        let (all, racing) = (store.clone(), store.clone());
        let first = AuthorityHandle::load_or_create(fake_api::client(move |call| stored(&all, &call)), config());
        let first = first.await.expect("made");
        // The second replica sees no Secret at first, and loses the race to create it.
        let mut asked = false;
        let client = fake_api::client(move |call| {
            if call.path == SECRET && !std::mem::replace(&mut asked, true) {
                return refusal(404, "NotFound");
            }
            stored(&racing, &call)
        });
        let second = AuthorityHandle::load_or_create(client, config()).await.expect("read");
        assert_eq!(first.bundle_pem(), second.bundle_pem());

        let objects = store.lock().expect("no panic before");
        assert_eq!(objects[CONFIG_MAP]["data"]["ca.crt"], first.bundle_pem());
        assert_eq!(objects[CONFIG_MAP]["data"]["trustDomain"], "test.local");
        assert_eq!(objects[CONFIG_MAP]["data"]["server"], "relay.example:8443");
        for path in [SECRET, CONFIG_MAP] {
            assert_eq!(
                objects[path]["metadata"]["ownerReferences"],
                Value::Null,
                "it outlives the release"
            );
        }
    }

    #[tokio::test]
    async fn a_broken_secret_is_an_error_and_stays() {
        remoteprocess_tls::install_crypto_provider();
        let secret = serde_json::json!({"metadata": {"name": "remoteprocess-ca"}, "data": {"tls.crt": "bm9uc2Vuc2U="}});
        let client = fake_api::client(move |call| {
            assert_eq!(call.method, Method::GET, "nothing is written");
            (200, secret.clone())
        });
        let error = AuthorityHandle::load_or_create(client, config())
            .await
            .err()
            .expect("unusable");
        assert_eq!(error.to_string(), "the Secret remoteprocess-ca has no usable tls.key");
    }

    #[tokio::test]
    async fn a_new_ca_in_the_secret_is_taken_over_and_the_old_one_still_trusted() {
        remoteprocess_tls::install_crypto_provider();
        let store = Store::default();
        let server = store.clone();
        let client = fake_api::client(move |call| stored(&server, &call));
        let handle = AuthorityHandle::load_or_create(client, config())
            .await
            .expect("an authority");
        let old = handle.bundle_pem();

        let next = Authority::generate(handle.trust_domain()).expect("a CA");
        let encode = |text: &str| Value::from(base64::Engine::encode(&base64::prelude::BASE64_STANDARD, text));
        let mut secret = store.lock().expect("no panic before")[SECRET].clone();
        secret["data"]["tls.crt"] = encode(next.cert_pem());
        secret["data"]["tls.key"] = encode(&next.key_pem());
        secret["data"]["ca.crt"] = encode(&old);
        store.lock().expect("no panic before").insert(SECRET.into(), secret);
        handle.refresh().await.expect("refreshed");

        assert_eq!(handle.bundle_pem(), format!("{}{old}", next.cert_pem()));
        assert_eq!(handle.identity().bundle_pem(), handle.bundle_pem());
        let published = store.lock().expect("no panic before")[CONFIG_MAP]["data"]["ca.crt"].clone();
        assert_eq!(published, handle.bundle_pem());
    }

    fn put(store: &Store, ca: &Authority) {
        let encode = |text: &str| Value::from(base64::Engine::encode(&base64::prelude::BASE64_STANDARD, text));
        let mut objects = store.lock().expect("no panic before");
        let secret = objects.get_mut(SECRET).expect("a Secret");
        secret["data"] = serde_json::json!({"tls.crt": encode(ca.cert_pem()), "tls.key": encode(&ca.key_pem())});
    }

    #[tokio::test]
    async fn a_deleted_secret_comes_back_with_the_same_ca() {
        let store = Store::default();
        let handle = handle_of(&store).await.expect("an authority");
        let before = handle.bundle_pem();
        let secret = store.lock().expect("no panic before").remove(SECRET).expect("a Secret");
        handle.refresh().await.expect("refreshed");
        assert_eq!(handle.bundle_pem(), before, "every running agent trusts it");
        let restored = store.lock().expect("no panic before")[SECRET].clone();
        for key in ["tls.crt", "tls.key"] {
            assert_eq!(restored["data"][key], secret["data"][key], "{key}");
        }
        let other = handle_of(&store).await.expect("another replica reads it");
        assert_eq!(other.bundle_pem(), before);
    }

    #[tokio::test]
    async fn a_start_makes_no_second_ca() {
        let store = Store::default();
        drop(handle_of(&store).await.expect("an authority"));
        store.lock().expect("no panic before").remove(SECRET);
        let error = handle_of(&store).await.err().expect("the first one is still trusted");
        assert!(matches!(error, Error::Missing), "{error}");
        assert!(
            !store.lock().expect("no panic before").contains_key(SECRET),
            "nothing is written"
        );
    }

    #[tokio::test]
    async fn a_former_ca_is_trusted_while_its_leaves_live() {
        let store = Store::default();
        let handle = handle_of(&store).await.expect("an authority");
        let old = handle.bundle_pem();
        let next = Authority::generate(handle.trust_domain()).expect("a CA");
        put(&store, &next);
        handle.refresh().await.expect("refreshed");
        assert_eq!(handle.bundle_pem(), format!("{}{old}", next.cert_pem()));
        handle.refresh().await.expect("refreshed");
        assert_eq!(handle.bundle_pem(), format!("{}{old}", next.cert_pem()), "it stays");

        let current = handle.current.load_full();
        let again = secret::load_or_restore(&handle.client, &handle.config, &current).await;
        let later = SystemTime::now() + FORMER_LIFETIME + REFRESH;
        let later = current.succeeded_by(again.expect("read"), later).expect("a bundle");
        assert_eq!(later.bundle_pem, next.cert_pem(), "and goes");
    }

    #[tokio::test]
    async fn agents_get_a_certificate_of_their_pod() {
        let handle = handle().await;
        let request = KeyRequest::generate().expect("a request");
        let chain = handle.sign_agent(&request.csr_der, "default", "uid-1").expect("signed");
        let agent = Identity::new(&chain, &request.key_pem, &handle.bundle_pem(), handle.trust_domain());
        let role = Role::Agent {
            namespace: "default".into(),
            pod_uid: "uid-1".into(),
        };
        assert_eq!(agent.expect("an identity").role(), role);
    }
}
