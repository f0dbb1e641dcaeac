//! The ConfigMaps of the authority: `remoteprocess-connect` tells clients whom to trust and where to connect,
//! `remoteprocess-ca` tells administrators about the CAs and takes their request for a rotation.

use std::{collections::BTreeMap, time::SystemTime};

use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api, Client,
    api::{ObjectMeta, Patch, PatchParams},
};
use remoteprocess_api::names;

use super::{
    AuthorityConfig, Error, Source,
    keyring::{Keyring, timestamp},
    rotation::{Schedule, switch_at},
};

/// Field manager of what the authority writes.
const MANAGER: &str = "remoteprocess-authority";

/// Longest request for a rotation, in bytes.
const MAX_REQUEST: usize = 64;

/// Publishes for clients which CAs to trust.
pub(super) async fn bundle(client: &Client, config: &AuthorityConfig, bundle_pem: &str) -> Result<(), Error> {
    let data = BTreeMap::from([
        (names::CONNECT_CA.to_owned(), bundle_pem.to_owned()),
        (names::CONNECT_TRUST_DOMAIN.to_owned(), config.trust_domain.to_string()),
        (names::CONNECT_LOGIN.to_owned(), config.login.clone()),
        (
            names::CONNECT_SERVER.to_owned(),
            config.server.clone().unwrap_or_default(),
        ),
    ]);
    publish(client, config, names::CONNECT_CONFIG_MAP, data).await?;
    Ok(())
}

/// Publishes the state of the CAs for administrators. Returns the rotation that one of them has requested, if any.
pub(super) async fn state(
    client: &Client,
    config: &AuthorityConfig,
    keyring: &Keyring,
) -> Result<Option<String>, Error> {
    let data = describe(keyring, &config.source, &config.schedule);
    let map = publish(client, config, names::CA_CONFIG_MAP, data).await?;
    Ok(request(&map))
}

/// The request for a rotation in the ConfigMap `remoteprocess-ca`.
pub(super) fn request(map: &ConfigMap) -> Option<String> {
    let annotations = map.metadata.annotations.as_ref()?;
    let request = annotations.get(names::ANNOTATION_ROTATE)?;
    (1..=MAX_REQUEST).contains(&request.len()).then(|| request.clone())
}

fn describe(keyring: &Keyring, source: &Source, schedule: &Schedule) -> BTreeMap<String, String> {
    let Keyring {
        current,
        crosses: _,
        next,
        former,
        answered,
    } = keyring;
    let text = |time: SystemTime| format!("{:.0}", timestamp(time));
    let phase = match (next, former.is_empty()) {
        (Some(_), _) => names::CA_ANNOUNCED,
        (None, false) => names::CA_RETIRING,
        (None, true) => names::CA_STABLE,
    };
    let source = match source {
        Source::Own => names::CA_OWN.to_owned(),
        Source::Secret(name) => format!("Secret {name}"),
    };
    let mut data = vec![
        (names::CA_SOURCE, source),
        (names::CA_PHASE, phase.to_owned()),
        (names::CA_EXPIRES, text(current.not_after())),
    ];
    if let Some(next) = next {
        let current = keyring.times().current;
        data.push((
            names::CA_NEXT_SIGNS,
            text(switch_at(&current, next.announced, schedule)),
        ));
        data.push((names::CA_NEXT_EXPIRES, text(next.authority.not_after())));
    }
    if let Some(last) = former.iter().map(|former| former.until).max() {
        data.push((names::CA_FORMER_UNTIL, text(last)));
    }
    if let Some(warning) = keyring.warning(SystemTime::now()) {
        data.push((names::CA_WARNING, warning));
    }
    if let Some(answered) = answered {
        data.push((names::CA_ANSWERED, answered.clone()));
    }
    data.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}

/// Updates a ConfigMap if it differs.
async fn publish(
    client: &Client,
    config: &AuthorityConfig,
    name: &str,
    data: BTreeMap<String, String>,
) -> Result<ConfigMap, Error> {
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), &config.namespace);
    if let Some(found) = maps
        .get_opt(name)
        .await?
        .filter(|found| found.data.as_ref() == Some(&data))
    {
        return Ok(found);
    }
    let wanted = build(config, name, data);
    // By force: no other manager may set these fields.
    let params = PatchParams::apply(MANAGER).force();
    Ok(maps.patch(name, &params, &Patch::Apply(&wanted)).await?)
}

/// Whether a CA was ever published here: then there was one, and agents trust it.
pub(super) async fn is_published(client: &Client, config: &AuthorityConfig) -> Result<bool, Error> {
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), &config.namespace);
    let found = maps.get_opt(names::CONNECT_CONFIG_MAP).await?;
    Ok(found
        .and_then(|map| map.data)
        .is_some_and(|data| data.get(names::CONNECT_CA).is_some_and(|bundle| !bundle.is_empty())))
}

fn build(config: &AuthorityConfig, name: &str, data: BTreeMap<String, String>) -> ConfigMap {
    ConfigMap {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            namespace: Some(config.namespace.clone()),
            labels: Some(labels()),
            annotations: Some(annotations()),
            ..ObjectMeta::default()
        },
        data: Some(data),
        ..ConfigMap::default()
    }
}

/// Labels of the authority's objects.
pub(super) fn labels() -> BTreeMap<String, String> {
    BTreeMap::from([
        ("app.kubernetes.io/name".to_owned(), names::APP_NAME.to_owned()),
        ("app.kubernetes.io/managed-by".to_owned(), names::MANAGED_BY.to_owned()),
    ])
}

/// Explains to people why these objects outlive the release.
pub(super) fn annotations() -> BTreeMap<String, String> {
    BTreeMap::from([(
        format!("{}/kept", names::GROUP),
        "Kept at helm uninstall: processes that still run need it after a re-install.".to_owned(),
    )])
}
