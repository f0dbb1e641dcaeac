//! The ConfigMap that tells clients which CA to trust and where to connect.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api, Client,
    api::{ObjectMeta, Patch, PatchParams},
};
use remoteprocess_api::names;

use super::{AuthorityConfig, Error};

/// Field manager of what the authority writes.
const MANAGER: &str = "remoteprocess-authority";

/// Updates the ConfigMap if it differs.
pub(super) async fn publish(client: &Client, config: &AuthorityConfig, bundle_pem: &str) -> Result<(), Error> {
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), &config.namespace);
    let wanted = build(config, bundle_pem);
    let found = maps.get_opt(names::CONNECT_CONFIG_MAP).await?;
    if found.is_some_and(|found| found.data == wanted.data) {
        return Ok(());
    }
    // By force: no other manager may set these fields.
    let params = PatchParams::apply(MANAGER).force();
    maps.patch(names::CONNECT_CONFIG_MAP, &params, &Patch::Apply(&wanted))
        .await?;
    Ok(())
}

/// Whether a CA was ever published here: then there was one, and agents trust it.
pub(super) async fn is_published(client: &Client, config: &AuthorityConfig) -> Result<bool, Error> {
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), &config.namespace);
    let found = maps.get_opt(names::CONNECT_CONFIG_MAP).await?;
    Ok(found
        .and_then(|map| map.data)
        .is_some_and(|data| data.get(names::CONNECT_CA).is_some_and(|bundle| !bundle.is_empty())))
}

fn build(config: &AuthorityConfig, bundle_pem: &str) -> ConfigMap {
    let data = BTreeMap::from([
        (names::CONNECT_CA.to_owned(), bundle_pem.to_owned()),
        (names::CONNECT_TRUST_DOMAIN.to_owned(), config.trust_domain.to_string()),
        (
            names::CONNECT_SERVER.to_owned(),
            config.server.clone().unwrap_or_default(),
        ),
    ]);
    ConfigMap {
        metadata: ObjectMeta {
            name: Some(names::CONNECT_CONFIG_MAP.to_owned()),
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
