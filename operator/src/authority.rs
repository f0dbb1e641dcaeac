//! The certificate authority of the installation: the CAs, their rotation, the published bundle, and the signing of
//! requests.
//!
//! Every replica holds the CAs of the Secret, and takes the next step of a rotation when it is due; the first one wins.
//! The Secret and the ConfigMaps belong to no release and have no owner, so that running agents find the same CAs after
//! a re-installation.

pub mod csr;
mod keyring;
pub mod metrics;
mod publish;
pub mod rate;
mod rotation;
mod secret;
mod source;

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwap;
use futures::{Stream, StreamExt, stream};
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::{
    Api, Client,
    runtime::{WatchStreamExt, watcher::watch_object},
};
use remoteprocess_api::names;
use remoteprocess_tls::{Authority, Identity, Role, TrustDomain, User};
use tokio_util::sync::CancellationToken;

use self::{
    keyring::{Keyring, Next},
    rotation::{Step, Want},
};
pub use self::{rotation::Schedule, source::Source};
use crate::audit::{Action, Audit};
use crate::backoff::Backoff;

/// How often the objects of the authority are read if no watch reports a change.
const REFRESH: Duration = Duration::from_secs(60);

/// Shortest pause between two refreshes.
const FLOOR: Duration = Duration::from_secs(1);

/// Maximum number of changes in one refresh: each one is read back before the next.
const STEPS: usize = 4;

/// Where the authority keeps its objects, and what it tells clients.
#[derive(Clone, Debug)]
pub struct AuthorityConfig {
    /// Namespace of the release.
    pub namespace: String,
    /// Trust domain of all certificates.
    pub trust_domain: TrustDomain,
    /// `host:port` by which clients reach the relay from outside, where there is one.
    pub server: Option<String>,
    /// `host:port` in the cluster at which machines log in.
    pub login: String,
    /// Where CAs come from.
    pub source: Source,
    /// How long CAs and certificates live.
    pub schedule: Schedule,
}

impl AuthorityConfig {
    fn generate(&self) -> Result<Authority, remoteprocess_tls::Error> {
        Authority::generate_for(&self.trust_domain, self.schedule.lifetime)
    }
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
        name: String,
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
    /// The Secret that another program should have created does not exist.
    #[error("there is no Secret {0} with a CA in the namespace of the release yet (the value ca.source of the chart)")]
    NoSource(String),
    /// The Secret of another program contains nothing that can be our CA.
    #[error("the Secret {name} holds no CA that can sign for RemoteProcess (the value ca.source of the chart)")]
    Source {
        /// Name of the Secret.
        name: String,
        /// What is wrong with it.
        #[source]
        error: Box<Error>,
    },
}

impl Error {
    /// A fixed word for metrics and Events.
    #[must_use]
    pub fn category(&self) -> &'static str {
        match self {
            Self::Kube(_) => "ApiServer",
            Self::Tls(_) => "Certificate",
            Self::Secret { .. } | Self::Missing => "Secret",
            Self::NoSource(_) | Self::Source { .. } => "Source",
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

/// The CAs in one version of the Secret.
struct Loaded {
    keyring: Keyring,
    bundle_pem: String,
}

impl Loaded {
    fn new(keyring: Keyring) -> Result<Self, Error> {
        let bundle_pem = keyring.bundle_pem()?;
        Ok(Self { keyring, bundle_pem })
    }

    fn can_sign(&self, now: SystemTime) -> bool {
        now < self.keyring.current.not_after()
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
        let first = || config.source.first(&client, &config);
        let mut keyring = secret::load_or_create(&client, &config, first).await?;
        if keyring.current.not_after() <= SystemTime::now() {
            keyring = succeed_expired(&client, &config, &keyring).await?;
        }
        let loaded = Loaded::new(keyring)?;
        let (chain, key) = issue(&loaded.keyring, &config.schedule)?;
        let identity = Identity::new(&chain, &key, &loaded.bundle_pem, &config.trust_domain)?;
        publish::bundle(&client, &config, &loaded.bundle_pem).await?;
        let handle = Self {
            client,
            config,
            current: ArcSwap::from_pointee(loaded),
            identity,
        };
        handle.measure();
        Ok(Arc::new(handle))
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
        self.sign(csr, &role, None, self.config.schedule.leaf)
    }

    /// Signs the key of a request for a user; for at most as long as for an agent. Returns the chain, PEM.
    ///
    /// # Errors
    /// As [`AuthorityHandle::sign_agent`].
    pub fn sign_user(&self, csr: &[u8], user: &User, lifetime: Duration) -> Result<String, remoteprocess_tls::Error> {
        self.sign(csr, &Role::User, Some(user), lifetime.min(self.config.schedule.leaf))
    }

    fn sign(
        &self,
        csr: &[u8],
        role: &Role,
        user: Option<&User>,
        lifetime: Duration,
    ) -> Result<String, remoteprocess_tls::Error> {
        self.current
            .load()
            .keyring
            .current
            .sign_csr_der(csr, role, user, lifetime)
    }

    /// How long the certificates of agents and users live.
    #[must_use]
    pub fn leaf_lifetime(&self) -> Duration {
        self.config.schedule.leaf
    }

    /// Renews the leaf, reloads the CAs from their Secret, rotates them in time, and keeps the bundle published, until
    /// `shutdown`. Failures are logged and retried; what is in use stays in use.
    pub async fn run(&self, shutdown: CancellationToken) {
        let mut changes = Box::pin(self.changes());
        loop {
            tokio::select! {
                () = tokio::time::sleep(self.pause()) => {}
                Some(()) = changes.next() => {}
                () = shutdown.cancelled() => return,
            }
            if let Err(error) = self.refresh(SystemTime::now()).await {
                tracing::warn!(
                    category = error.category(),
                    error = &error as &dyn std::error::Error,
                    "the authority cannot be refreshed"
                );
            }
            self.measure();
        }
    }

    /// Completes when the Secret, the source of CAs, or the request of an administrator has changed.
    fn changes(&self) -> impl Stream<Item = ()> + use<> {
        let secrets: Api<Secret> = Api::namespaced(self.client.clone(), &self.config.namespace);
        let requests: Api<ConfigMap> = Api::namespaced(self.client.clone(), &self.config.namespace);
        let mut watched = vec![names::CA_SECRET.to_owned()];
        if let Source::Secret(name) = &self.config.source {
            watched.push(name.clone());
        }
        let secrets = watched.into_iter().map(move |name| {
            let versions = watch_object(secrets.clone(), &name).backoff(Backoff::WATCH);
            changed(versions, |secret: Option<Secret>| secret?.metadata.resource_version)
        });
        let requests = watch_object(requests, names::CA_CONFIG_MAP).backoff(Backoff::WATCH);
        let requests = changed(requests, |map: Option<ConfigMap>| publish::request(&map?));
        stream::select(stream::select_all(secrets.map(StreamExt::boxed)), requests)
    }

    /// How long to wait before the next refresh: shorter if the leaf or a rotation is due earlier, but never a busy
    /// loop.
    fn pause(&self) -> Duration {
        let want = match self.config.source {
            Source::Own => Want::OnSchedule,
            Source::Secret(_) => Want::Never,
        };
        let rotation = rotation::due(&self.current.load().keyring.times(), &self.config.schedule, want);
        let due = rotation.into_iter().chain([self.identity.renew_at()]).min();
        let due = due.and_then(|due| due.duration_since(SystemTime::now()).ok());
        due.unwrap_or_default().clamp(FLOOR, REFRESH)
    }

    /// Renews the leaf first, which needs no API server; then takes the steps of a rotation that are due.
    async fn refresh(&self, now: SystemTime) -> Result<(), Error> {
        let known = self.current.load_full();
        if self.identity.renew_at() <= now && known.can_sign(now) {
            self.renew(&known)?;
        }
        for _ in 0..STEPS {
            let known = self.current.load_full();
            let secret = secret::load_or_restore(&self.client, &self.config, &known.keyring).await?;
            let Some(changed) = self.changed(&secret, &known.keyring, now).await? else {
                return Ok(());
            };
            secret::store(&self.client, &self.config, secret, &changed).await?;
        }
        Ok(())
    }

    /// The new content of the Secret, if a step is due. The current content is used and published first, so a CA is
    /// published for the whole wait before it signs.
    async fn changed(&self, secret: &Secret, known: &Keyring, now: SystemTime) -> Result<Option<Keyring>, Error> {
        let (client, config) = (&self.client, &self.config);
        let found = || secret::parse(secret, &config.trust_domain);
        let adopted = || {
            let mut keyring = found()?;
            let is_changed = keyring.adopt(known, now + config.schedule.overlap());
            Ok::<_, Error>((keyring, is_changed))
        };
        let (keyring, is_adopted) = adopted()?;
        self.use_keyring(keyring, now)?;
        publish::bundle(client, config, &self.bundle_pem()).await?;
        let request = publish::state(client, config, &self.current.load().keyring).await?;
        if is_adopted {
            return Ok(Some(adopted()?.0));
        }
        match config.source.offered(client, config).await {
            Ok(offered) => self.stepped(found()?, offered, request, now),
            // An announced CA does not need the source of CAs anymore.
            Err(fault) => self.stepped(found()?, None, request, now)?.map(Some).ok_or(fault),
        }
    }

    fn use_keyring(&self, keyring: Keyring, now: SystemTime) -> Result<(), Error> {
        let (known, loaded) = (self.current.load_full(), Loaded::new(keyring)?);
        let is_news = known.bundle_pem != loaded.bundle_pem
            || known.keyring.current.anchor_pem() != loaded.keyring.current.anchor_pem();
        // An expired CA can sign no certificate for us; its successor can, a step later.
        if is_news && loaded.can_sign(now) {
            self.renew(&loaded)?;
            tracing::info!("what signs, or what is trusted, has changed");
        }
        self.current.store(Arc::new(loaded));
        Ok(())
    }

    /// The CAs after the step that is due, if one is.
    fn stepped(
        &self,
        mut keyring: Keyring,
        offered: Option<Authority>,
        request: Option<String>,
        now: SystemTime,
    ) -> Result<Option<Keyring>, Error> {
        let config = &self.config;
        let want = config.source.wants(&keyring, offered.as_ref(), request.as_deref());
        let Some(step) = rotation::step(&keyring.times(), &config.schedule, want, now) else {
            return Ok(None);
        };
        match step {
            Step::Announce => {
                let authority = offered.map_or_else(|| config.generate(), Ok)?;
                keyring.next = Some(Next {
                    authority,
                    announced: now,
                });
                keyring.answered = request;
            }
            Step::Drop => keyring.next = None,
            Step::Switch => keyring.switch(now + config.schedule.overlap()),
            Step::Retire => keyring.retire(now),
        }
        Audit::default().write(Action::RotateCa(&format!("{step:?}")));
        Ok(Some(keyring))
    }

    fn renew(&self, loaded: &Loaded) -> Result<(), Error> {
        let (chain, key) = issue(&loaded.keyring, &self.config.schedule)?;
        Ok(self.identity.replace(&chain, &key, &loaded.bundle_pem)?)
    }

    fn measure(&self) {
        let loaded = self.current.load();
        if let Some(warning) = loaded.keyring.warning(SystemTime::now()) {
            tracing::warn!(warning, "the CA ends soon");
        }
        let next = loaded.keyring.next.as_ref();
        metrics::expiry("ca", Some(loaded.keyring.current.not_after()));
        metrics::expiry("next-ca", next.map(|next| next.authority.not_after()));
        metrics::expiry("operator", Some(self.identity.not_after()));
    }
}

/// Replaces a CA that expired while no replica was running: by the announced one, or by a new one.
async fn succeed_expired(client: &Client, config: &AuthorityConfig, known: &Keyring) -> Result<Keyring, Error> {
    let secret = secret::load_or_restore(client, config, known).await?;
    let (mut keyring, now) = (secret::parse(&secret, &config.trust_domain)?, SystemTime::now());
    keyring.next.take_if(|next| next.authority.not_after() <= now);
    if keyring.next.is_none() {
        let authority = config.source.first(client, config).await?;
        keyring.next = Some(Next {
            authority,
            announced: now,
        });
    }
    keyring.switch(now + config.schedule.overlap());
    secret::store(client, config, secret, &keyring).await?;
    tracing::warn!("the CA had expired; agents that have not learned the next one do not trust it");
    let secret = secret::load_or_restore(client, config, &keyring).await?;
    secret::parse(&secret, &config.trust_domain)
}

/// Lifetime of the operator's own leaf: a day for certificates of an hour, so that an outage of the API server does no
/// harm.
fn issue(keyring: &Keyring, schedule: &Schedule) -> Result<(String, String), remoteprocess_tls::Error> {
    keyring.current.issue(&Role::Operator, None, schedule.leaf * 24)
}

/// Completes when the `part` of an object has changed. A watch that fails is restarted; in the meantime there is the
/// regular refresh.
fn changed<K, E>(
    objects: impl Stream<Item = Result<Option<K>, E>>,
    part: impl Fn(Option<K>) -> Option<String>,
) -> impl Stream<Item = ()> {
    let parts = objects.filter_map(|object| std::future::ready(object.ok())).map(part);
    let mut last = None;
    parts.filter_map(move |part| {
        let is_news = last.as_ref() != Some(&part);
        last = Some(part);
        std::future::ready(is_news.then_some(()))
    })
}

#[cfg(test)]
mod soak;

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

    pub(super) type Store = Arc<Mutex<HashMap<String, Value>>>;

    fn config() -> AuthorityConfig {
        AuthorityConfig {
            namespace: "remoteprocess-system".into(),
            trust_domain: "test.local".parse().expect("a domain"),
            server: Some("relay.example:8443".into()),
            login: "relay.svc:8444".into(),
            source: Source::Own,
            schedule: Schedule::default(),
        }
    }

    /// An API server that stores what is posted, put or applied, by path, with a new resourceVersion.
    fn stored(store: &Store, call: &Call) -> (u16, Value) {
        let mut objects = store.lock().unwrap_or_else(PoisonError::into_inner);
        let name = call.body["metadata"]["name"].as_str().unwrap_or_default();
        let path = match call.method {
            Method::POST => format!("{}/{name}", call.path),
            _ => call.path.clone(),
        };
        let known = objects.get(&path).cloned();
        let version = |object: &Value| object["metadata"]["resourceVersion"].as_str().unwrap_or("0").to_owned();
        let mut object = call.body.clone();
        match (&call.method, &known) {
            (&Method::GET, None) | (&Method::PUT, None) => return refusal(404, "NotFound"),
            (&Method::GET, Some(known)) => return (200, known.clone()),
            (&Method::POST, Some(_)) => return refusal(409, "AlreadyExists"),
            (&Method::PUT, Some(known)) if version(known) != version(&object) => return refusal(409, "Conflict"),
            (&Method::PATCH, Some(known)) => {
                if let Some(request) = known["metadata"]["annotations"].get(names::ANNOTATION_ROTATE) {
                    object["metadata"]["annotations"][names::ANNOTATION_ROTATE] = request.clone();
                }
            }
            _ => {}
        }
        let next: u64 = known
            .as_ref()
            .map_or(0, |known| version(known).parse().expect("a number"));
        object["metadata"]["resourceVersion"] = (next + 1).to_string().into();
        objects.insert(path, object.clone());
        (200, object)
    }

    /// An authority over a fake API server, for tests of other modules.
    pub(crate) async fn handle() -> Arc<AuthorityHandle> {
        handle_of(&Store::default()).await.expect("an authority")
    }

    /// The certificate and the key of the CA that signs, PEM.
    pub(crate) fn ca(handle: &AuthorityHandle) -> (String, String) {
        let loaded = handle.current.load();
        let current = &loaded.keyring.current;
        (current.cert_pem().to_owned(), current.key_pem())
    }

    pub(super) async fn handle_of(store: &Store) -> Result<Arc<AuthorityHandle>, Error> {
        handle_with(store, config()).await
    }

    async fn handle_with(store: &Store, config: AuthorityConfig) -> Result<Arc<AuthorityHandle>, Error> {
        remoteprocess_tls::install_crypto_provider();
        let store = store.clone();
        let client = fake_api::client(move |call| stored(&store, &call));
        AuthorityHandle::load_or_create(client, config).await
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
        handle.refresh(SystemTime::now()).await.expect("refreshed");

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
        handle.refresh(SystemTime::now()).await.expect("refreshed");
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
        handle.refresh(SystemTime::now()).await.expect("refreshed");
        assert_eq!(handle.bundle_pem(), format!("{}{old}", next.cert_pem()));
        handle.refresh(SystemTime::now()).await.expect("refreshed");
        assert_eq!(handle.bundle_pem(), format!("{}{old}", next.cert_pem()), "it stays");

        let again = handle_of(&store).await.expect("started again");
        assert_eq!(again.bundle_pem(), handle.bundle_pem(), "a restart forgets nothing");
        for handle in [again, handle] {
            let later = SystemTime::now() + handle.config.schedule.overlap();
            handle.refresh(later).await.expect("refreshed");
            assert_eq!(handle.bundle_pem(), next.cert_pem(), "and goes");
        }
    }

    const CA_MAP: &str = "/api/v1/namespaces/remoteprocess-system/configmaps/remoteprocess-ca";

    pub(super) fn published(store: &Store, key: &str) -> Value {
        store.lock().expect("no panic before")[CA_MAP]["data"][key].clone()
    }

    pub(super) fn request_rotation(store: &Store, value: &str) {
        let mut objects = store.lock().expect("no panic before");
        objects.get_mut(CA_MAP).expect("a ConfigMap")["metadata"]["annotations"][names::ANNOTATION_ROTATE] =
            value.into();
    }

    /// Two replicas and one that starts in each phase agree, and no peer is cut off.
    #[tokio::test]
    async fn a_requested_rotation_is_announced_waits_switches_and_retires() {
        let store = Store::default();
        let (one, other) = (
            handle_of(&store).await.expect("one"),
            handle_of(&store).await.expect("other"),
        );
        let (first, now) = (one.bundle_pem(), SystemTime::now());
        one.refresh(now).await.expect("refreshed");
        assert_eq!(
            (published(&store, "phase"), published(&store, "source")),
            ("Stable".into(), "Own".into())
        );

        request_rotation(&store, "2026-11-29T12:00:00Z");
        let overlap = one.config.schedule.overlap();
        let mut bundles = Vec::new();
        for (at, phase) in [
            (now, "Announced"),
            (now + overlap / 2, "Announced"),
            (now + overlap, "Retiring"),
            (now + overlap * 2, "Stable"),
            (now + overlap * 3, "Stable"),
        ] {
            for handle in [&other, &one] {
                handle.refresh(at).await.expect("refreshed");
                assert_eq!(handle.bundle_pem(), other.bundle_pem(), "{phase}");
            }
            let started = handle_of(&store).await.expect("a third one");
            assert_eq!(started.bundle_pem(), one.bundle_pem(), "{phase}");
            assert_eq!(published(&store, "phase"), phase);
            assert_eq!(published(&store, "answered"), "2026-11-29T12:00:00Z");
            bundles.push(one.bundle_pem());
        }
        let second = bundles.pop().expect("a bundle");
        assert_ne!(second, first);
        let expected = [
            format!("{first}{second}"),
            format!("{first}{second}"),
            format!("{second}{first}"),
            second.clone(),
        ];
        assert_eq!(bundles, expected);

        let (chain, key) = issue(&one.current.load().keyring, &one.config.schedule).expect("a leaf");
        Identity::new(&chain, &key, &first, one.trust_domain()).expect("an agent that was away all the time trusts it");
    }

    #[tokio::test]
    async fn a_ca_of_our_own_is_followed_before_it_ends() {
        let store = Store::default();
        let handle = handle_of(&store).await.expect("an authority");
        let schedule = handle.config.schedule;
        let due = SystemTime::now() + schedule.lifetime - schedule.renew_before;
        handle.refresh(due - REFRESH).await.expect("refreshed");
        assert_eq!(published(&store, "phase"), "Stable");
        handle.refresh(due).await.expect("refreshed");
        assert_eq!(published(&store, "phase"), "Announced");
    }

    #[tokio::test]
    async fn an_expired_ca_is_followed_at_once() {
        let store = Store::default();
        let handle = handle_of(&store).await.expect("an authority");
        let expired = || Authority::generate_for(&config().trust_domain, Duration::ZERO).expect("a CA");
        put(&store, &expired());
        handle.refresh(SystemTime::now()).await.expect("refreshed");
        assert_eq!(published(&store, "phase"), "Retiring", "it has switched already");

        let expired = expired();
        put(&store, &expired);
        let started = handle_of(&store).await.expect("a start replaces it");
        assert!(
            started.bundle_pem().ends_with(&expired.anchor_pem()),
            "its name is not forgotten"
        );
        let other = handle_of(&store).await.expect("another one reads it");
        assert_eq!(other.bundle_pem(), started.bundle_pem());
    }

    const OFFERED: &str = "/api/v1/namespaces/remoteprocess-system/secrets/offered";

    fn offer(store: &Store, certificate: &str, key: &str) {
        let encode = |text: &str| Value::from(base64::Engine::encode(&base64::prelude::BASE64_STANDARD, text));
        let data = serde_json::json!({"tls.crt": encode(certificate), "tls.key": encode(key)});
        let secret = serde_json::json!({"metadata": {"name": "offered", "resourceVersion": "1"}, "data": data});
        store.lock().expect("no panic before").insert(OFFERED.into(), secret);
    }

    fn other_source() -> AuthorityConfig {
        AuthorityConfig {
            source: Source::Secret("offered".into()),
            ..config()
        }
    }

    fn generate() -> Authority {
        remoteprocess_tls::install_crypto_provider();
        Authority::generate(&config().trust_domain).expect("a CA")
    }

    /// cert-manager makes the CA, renews it, is uninstalled; then its Secret is deleted.
    #[tokio::test]
    async fn a_ca_of_another_program_rotates_like_our_own() {
        let store = Store::default();
        let error = handle_with(&store, other_source())
            .await
            .err()
            .expect("nothing is offered");
        assert!(matches!(error, Error::NoSource(_)), "{error}");

        let (first, second) = (generate(), generate());
        offer(&store, first.cert_pem(), &first.key_pem());
        let handle = handle_with(&store, other_source()).await.expect("an authority");
        assert_eq!(handle.bundle_pem(), first.cert_pem());

        offer(&store, second.cert_pem(), &second.key_pem());
        let (now, overlap) = (SystemTime::now(), handle.config.schedule.overlap());
        handle.refresh(now).await.expect("refreshed");
        assert_eq!(
            handle.bundle_pem(),
            format!("{}{}", first.cert_pem(), second.cert_pem())
        );
        assert_eq!(published(&store, "source"), "Secret offered");
        store.lock().expect("no panic before").remove(OFFERED);
        let error = handle
            .refresh(now + overlap)
            .await
            .expect_err("it is told that the source is gone");
        assert!(matches!(error, Error::NoSource(_)), "{error}");
        assert_eq!(
            handle.bundle_pem(),
            format!("{}{}", second.cert_pem(), first.cert_pem()),
            "it switched anyway"
        );
        handle.refresh(now + overlap * 2).await.expect_err("still gone");
        assert_eq!(handle.bundle_pem(), second.cert_pem());

        drop(
            handle_with(&store, other_source())
                .await
                .expect("a start needs no source either"),
        );
        let own = handle_of(&store).await.expect("another source");
        request_rotation(&store, "again");
        own.refresh(now + overlap * 3).await.expect("refreshed");
        assert_eq!(published(&store, "phase"), "Announced");
    }

    #[tokio::test]
    async fn what_cannot_sign_for_us_is_no_ca() {
        let store = Store::default();
        let (ours, key) = (generate(), generate());
        let (leaf, leaf_key) = ours.issue(&Role::Operator, None, REFRESH).expect("a leaf");
        let sec1 = "-----BEGIN EC PRIVATE KEY-----\nMHcCAQEE\n-----END EC PRIVATE KEY-----\n";
        for (certificate, key) in [
            (leaf.as_str(), leaf_key.as_str()),
            (ours.cert_pem(), &key.key_pem()),
            (ours.cert_pem(), sec1),
        ] {
            offer(&store, certificate, key);
            let error = handle_with(&store, other_source()).await.err().expect("unusable");
            assert!(matches!(error, Error::Source { .. }), "{error}");
        }
    }

    /// Another team has a certificate of the same root, with our URI.
    #[tokio::test]
    async fn a_leaf_of_the_same_root_is_no_member() {
        remoteprocess_tls::install_crypto_provider();
        let intermediate = |issuer: &rcgen::Issuer<'_, rcgen::KeyPair>, name: &str| {
            let key = rcgen::KeyPair::generate().expect("a key");
            let mut params = rcgen::CertificateParams::default();
            params.distinguished_name.push(rcgen::DnType::CommonName, name);
            params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
            let pem = params.signed_by(&key, issuer).expect("a certificate").pem();
            (pem, key.serialize_pem())
        };
        let key = rcgen::KeyPair::generate().expect("a key");
        let mut params = rcgen::CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let root = params.self_signed(&key).expect("a root").pem();
        let issuer = rcgen::Issuer::new(params, key);
        let (ours, foreign) = (intermediate(&issuer, "ours"), intermediate(&issuer, "theirs"));

        let store = Store::default();
        offer(&store, &format!("{}{root}", ours.0), &ours.1);
        let encoded = base64::Engine::encode(&base64::prelude::BASE64_STANDARD, &root);
        store.lock().expect("no panic before").get_mut(OFFERED).expect("it")["data"]["ca.crt"] = encoded.into();
        let handle = handle_with(&store, other_source()).await.expect("an authority");

        let foreign = Authority::from_pem(&format!("{}{root}", foreign.0), &foreign.1, handle.trust_domain());
        let (chain, key) = foreign
            .expect("a CA")
            .issue(&Role::Operator, None, REFRESH)
            .expect("a leaf");
        Identity::new(&chain, &key, &root, handle.trust_domain()).expect("the root vouches for it");
        let error = Identity::new(&chain, &key, &handle.bundle_pem(), handle.trust_domain())
            .err()
            .expect("refused");
        assert!(matches!(error, remoteprocess_tls::Error::Unverified(_)), "{error}");
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
