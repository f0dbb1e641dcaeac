//! The Secret that holds the CA.

use std::collections::BTreeMap;

use k8s_openapi::{ByteString, api::core::v1::Secret};
use kube::{
    Api, Client,
    api::{ObjectMeta, PostParams},
};
use remoteprocess_api::names;
use remoteprocess_tls::{Authority, bundle};

use super::{AuthorityConfig, Error, Loaded, publish};

/// Certificate of the CA, and those above it.
const CERTIFICATE: &str = "tls.crt";

/// Private key of the CA.
const KEY: &str = "tls.key";

/// Further CAs to trust: the root above an intermediate, and during a change of CAs first the next CA, then the
/// previous one, each for as long as a leaf lives.
const FURTHER: &str = "ca.crt";

/// Reads the CA, or creates it if none was ever published. An existing Secret is never overwritten.
pub(super) async fn load_or_create(client: &Client, config: &AuthorityConfig) -> Result<Loaded, Error> {
    let secrets: Api<Secret> = Api::namespaced(client.clone(), &config.namespace);
    if let Some(secret) = secrets.get_opt(names::CA_SECRET).await? {
        return parse(&secret, config);
    }
    if publish::is_published(client, config).await? {
        // Another replica may have created and published it in the meantime.
        let secret = secrets.get_opt(names::CA_SECRET).await?.ok_or(Error::Missing)?;
        return parse(&secret, config);
    }
    let authority = Authority::generate(&config.trust_domain)?;
    let loaded = create(&secrets, build(&authority, "", config), config).await?;
    tracing::info!(
        secret = names::CA_SECRET,
        namespace = config.namespace,
        "the first CA is there"
    );
    Ok(loaded)
}

/// Reads the CA. A deleted Secret is restored from `current`.
pub(super) async fn load_or_restore(
    client: &Client,
    config: &AuthorityConfig,
    current: &Loaded,
) -> Result<Loaded, Error> {
    let secrets: Api<Secret> = Api::namespaced(client.clone(), &config.namespace);
    if let Some(secret) = secrets.get_opt(names::CA_SECRET).await? {
        return parse(&secret, config);
    }
    let secret = build(&current.authority, &current.own_bundle_pem, config);
    let loaded = create(&secrets, secret, config).await?;
    tracing::warn!(
        secret = names::CA_SECRET,
        namespace = config.namespace,
        "the CA's Secret was gone; it is back as it was"
    );
    Ok(loaded)
}

/// Creates the Secret, or reads it if another replica was first.
async fn create(secrets: &Api<Secret>, secret: Secret, config: &AuthorityConfig) -> Result<Loaded, Error> {
    match secrets.create(&PostParams::default(), &secret).await {
        Ok(created) => parse(&created, config),
        Err(kube::Error::Api(status)) if status.is_already_exists() => {
            parse(&secrets.get(names::CA_SECRET).await?, config)
        }
        Err(error) => Err(error.into()),
    }
}

fn build(authority: &Authority, further_pem: &str, config: &AuthorityConfig) -> Secret {
    let mut data = BTreeMap::from([
        (
            CERTIFICATE.to_owned(),
            ByteString(authority.cert_pem().as_bytes().to_vec()),
        ),
        (KEY.to_owned(), ByteString(authority.key_pem().into_bytes())),
    ]);
    if !further_pem.is_empty() {
        data.insert(FURTHER.to_owned(), ByteString(further_pem.as_bytes().to_vec()));
    }
    Secret {
        metadata: ObjectMeta {
            name: Some(names::CA_SECRET.to_owned()),
            namespace: Some(config.namespace.clone()),
            labels: Some(publish::labels()),
            annotations: Some(publish::annotations()),
            ..ObjectMeta::default()
        },
        type_: Some("kubernetes.io/tls".to_owned()),
        data: Some(data),
        ..Secret::default()
    }
}

fn parse(secret: &Secret, config: &AuthorityConfig) -> Result<Loaded, Error> {
    let certificate = text(secret, CERTIFICATE)?.ok_or(unusable(CERTIFICATE))?;
    let key = text(secret, KEY)?.ok_or(unusable(KEY))?;
    let further = text(secret, FURTHER)?.unwrap_or_default();
    let authority = Authority::from_pem(certificate, key, &config.trust_domain)?;
    let own_bundle_pem = bundle(&[certificate, further])?;
    Ok(Loaded {
        authority,
        bundle_pem: own_bundle_pem.clone(),
        own_bundle_pem,
        former: Vec::new(),
    })
}

fn text<'a>(secret: &'a Secret, key: &'static str) -> Result<Option<&'a str>, Error> {
    let bytes = secret.data.as_ref().and_then(|data| data.get(key));
    bytes
        .map(|bytes| str::from_utf8(&bytes.0).map_err(|_| unusable(key)))
        .transpose()
}

fn unusable(key: &'static str) -> Error {
    Error::Secret {
        name: names::CA_SECRET,
        key,
    }
}
