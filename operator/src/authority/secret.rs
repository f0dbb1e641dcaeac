//! The Secret that holds the CAs, the same for all replicas.

use std::{collections::BTreeMap, time::SystemTime};

use jiff::Timestamp;
use k8s_openapi::{ByteString, api::core::v1::Secret};
use kube::{
    Api, Client,
    api::{ObjectMeta, PostParams},
};
use remoteprocess_api::names;
use remoteprocess_tls::{Authority, TrustDomain};
use serde::{Deserialize, Serialize};

use super::{
    AuthorityConfig, Error,
    keyring::{Former, Keyring, Next, timestamp},
    publish,
};

/// Certificate of the CA that signs, and those above it.
const CERTIFICATE: &str = "tls.crt";

/// Its private key.
const KEY: &str = "tls.key";

/// Certificate and key of the announced CA.
const NEXT_CERTIFICATE: &str = "next.crt";
const NEXT_KEY: &str = "next.key";

/// Everything else about a rotation: [`Record`] as JSON.
const ROTATION: &str = "rotation.json";

/// The part of a [`Keyring`] that is no key.
#[derive(Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Record {
    /// When the next CA was announced.
    #[serde(skip_serializing_if = "Option::is_none")]
    announced: Option<Timestamp>,
    former: Vec<FormerRecord>,
    crosses: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    answered: Option<String>,
}

#[derive(Serialize, Deserialize)]
struct FormerRecord {
    certificate: String,
    until: Timestamp,
}

/// Reads the CAs. Where none was ever published, it stores `first` (of several replicas the first one wins).
pub(super) async fn load_or_create<F: Future<Output = Result<Authority, Error>>>(
    client: &Client,
    config: &AuthorityConfig,
    first: impl FnOnce() -> F,
) -> Result<Keyring, Error> {
    let secrets: Api<Secret> = Api::namespaced(client.clone(), &config.namespace);
    if let Some(secret) = secrets.get_opt(names::CA_SECRET).await? {
        return parse(&secret, &config.trust_domain);
    }
    if publish::is_published(client, config).await? {
        // Another replica may have created and published it in the meantime.
        let secret = secrets.get_opt(names::CA_SECRET).await?.ok_or(Error::Missing)?;
        return parse(&secret, &config.trust_domain);
    }
    let secret = create(&secrets, build(&Keyring::first(first().await?), config)?).await?;
    tracing::info!(
        secret = names::CA_SECRET,
        namespace = config.namespace,
        "the first CA is there"
    );
    parse(&secret, &config.trust_domain)
}

/// Reads the Secret. One that is gone is put back as `known` has it.
pub(super) async fn load_or_restore(
    client: &Client,
    config: &AuthorityConfig,
    known: &Keyring,
) -> Result<Secret, Error> {
    let secrets: Api<Secret> = Api::namespaced(client.clone(), &config.namespace);
    if let Some(secret) = secrets.get_opt(names::CA_SECRET).await? {
        return Ok(secret);
    }
    let secret = create(&secrets, build(known, config)?).await?;
    tracing::warn!(
        secret = names::CA_SECRET,
        namespace = config.namespace,
        "the CA's Secret was gone; it is back as it was"
    );
    Ok(secret)
}

/// Stores `keyring` in the Secret that was read; nothing is written where another replica has changed it meanwhile.
pub(super) async fn store(
    client: &Client,
    config: &AuthorityConfig,
    mut secret: Secret,
    keyring: &Keyring,
) -> Result<(), Error> {
    let secrets: Api<Secret> = Api::namespaced(client.clone(), &config.namespace);
    let data = secret.data.get_or_insert_default();
    for key in [NEXT_CERTIFICATE, NEXT_KEY] {
        data.remove(key);
    }
    data.append(&mut write(keyring)?);
    // With the resourceVersion that was read.
    match secrets.replace(names::CA_SECRET, &PostParams::default(), &secret).await {
        Err(kube::Error::Api(status)) if status.is_conflict() || status.is_not_found() => Ok(()),
        stored => stored.map(drop).map_err(Error::from),
    }
}

/// Creates the Secret, or reads it where another replica was first.
async fn create(secrets: &Api<Secret>, secret: Secret) -> Result<Secret, Error> {
    match secrets.create(&PostParams::default(), &secret).await {
        Err(kube::Error::Api(status)) if status.is_already_exists() => Ok(secrets.get(names::CA_SECRET).await?),
        created => Ok(created?),
    }
}

fn build(keyring: &Keyring, config: &AuthorityConfig) -> Result<Secret, Error> {
    Ok(Secret {
        metadata: ObjectMeta {
            name: Some(names::CA_SECRET.to_owned()),
            namespace: Some(config.namespace.clone()),
            labels: Some(publish::labels()),
            annotations: Some(publish::annotations()),
            ..ObjectMeta::default()
        },
        type_: Some("kubernetes.io/tls".to_owned()),
        data: Some(write(keyring)?),
        ..Secret::default()
    })
}

fn write(keyring: &Keyring) -> Result<BTreeMap<String, ByteString>, Error> {
    let Keyring {
        current,
        crosses,
        next,
        former,
        answered,
    } = keyring;
    let record = Record {
        announced: next.as_ref().map(|next| timestamp(next.announced)),
        former: former.iter().map(FormerRecord::from).collect(),
        crosses: crosses.clone(),
        answered: answered.clone(),
    };
    let record = serde_json::to_string(&record).map_err(|_| unusable(names::CA_SECRET, ROTATION))?;
    let mut data = vec![
        (CERTIFICATE, current.cert_pem().to_owned()),
        (KEY, current.key_pem()),
        (ROTATION, record),
    ];
    if let Some(Next { authority, .. }) = next {
        data.push((NEXT_CERTIFICATE, authority.cert_pem().to_owned()));
        data.push((NEXT_KEY, authority.key_pem()));
    }
    Ok(data
        .into_iter()
        .map(|(key, text)| (key.to_owned(), ByteString(text.into_bytes())))
        .collect())
}

/// The CAs in the Secret.
pub(super) fn parse(secret: &Secret, trust_domain: &TrustDomain) -> Result<Keyring, Error> {
    let record = match text(secret, ROTATION)? {
        Some(record) => serde_json::from_str(record).map_err(|_| unusable(names::CA_SECRET, ROTATION))?,
        None => Record::default(),
    };
    let announced = record.announced.map_or(SystemTime::UNIX_EPOCH, SystemTime::from);
    let next = match text(secret, NEXT_CERTIFICATE)? {
        Some(_) => Some(Next {
            authority: authority(secret, NEXT_CERTIFICATE, NEXT_KEY, trust_domain)?,
            announced,
        }),
        None => None,
    };
    let former = record.former.into_iter().map(|former| Former {
        certificate: former.certificate,
        until: former.until.into(),
    });
    let current = authority(secret, CERTIFICATE, KEY, trust_domain)?;
    Ok(Keyring {
        current: current.with_cross_certificates(&record.crosses.concat()),
        crosses: record.crosses,
        next,
        former: former.collect(),
        answered: record.answered,
    })
}

/// The CA in a Secret of the type `kubernetes.io/tls`.
pub(super) fn tls_authority(secret: &Secret, trust_domain: &TrustDomain) -> Result<Authority, Error> {
    authority(secret, CERTIFICATE, KEY, trust_domain)
}

fn authority(
    secret: &Secret,
    certificate: &'static str,
    key: &'static str,
    trust_domain: &TrustDomain,
) -> Result<Authority, Error> {
    let name = secret.metadata.name.as_deref().unwrap_or(names::CA_SECRET);
    let value = |key| text(secret, key)?.ok_or_else(|| unusable(name, key));
    Ok(Authority::from_pem(value(certificate)?, value(key)?, trust_domain)?)
}

fn text<'a>(secret: &'a Secret, key: &'static str) -> Result<Option<&'a str>, Error> {
    let name = secret.metadata.name.as_deref().unwrap_or(names::CA_SECRET);
    let bytes = secret.data.as_ref().and_then(|data| data.get(key));
    bytes
        .map(|bytes| str::from_utf8(&bytes.0).map_err(|_| unusable(name, key)))
        .transpose()
}

fn unusable(name: &str, key: &'static str) -> Error {
    Error::Secret {
        name: name.to_owned(),
        key,
    }
}

impl From<&Former> for FormerRecord {
    fn from(former: &Former) -> Self {
        Self {
            certificate: former.certificate.clone(),
            until: timestamp(former.until),
        }
    }
}
