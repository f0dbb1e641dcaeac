//! `rproc admin`: tasks of administrators of an installation.

use std::collections::BTreeMap;
use std::time::Duration;

use clap::Subcommand;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use kube::api::{Patch, PatchParams};
use remoteprocess_api::names;
use remoteprocess_client::{Cluster, DialError, Rule};
use serde_json::json;

use crate::args::GlobalArgs;
use crate::failure::Failure;
use crate::print::print;

/// How long the operator may take to answer a request, and how often to ask.
const LIMIT: Duration = Duration::from_secs(90);
const POLL: Duration = Duration::from_millis(500);

/// Flags of `admin`.
#[derive(Debug, clap::Args)]
pub struct AdminArgs {
    /// What to do.
    #[command(subcommand)]
    command: AdminCommand,
}

#[derive(Debug, Subcommand)]
enum AdminCommand {
    /// Replace the CA of the installation, without cutting anything
    #[command(
        after_help = "The operator announces the next CA at once. It signs after twice the lifetime of a certificate (two hours by \
                      default), and the present one is retired after as much again.\nNeeds the Role remoteprocess-admin in the \
                      namespace of the operator."
    )]
    RotateCa,
}

/// Runs one task.
pub async fn run(global: &GlobalArgs, args: AdminArgs) -> Result<u8, Failure> {
    let cluster = global.open().await?;
    match args.command {
        AdminCommand::RotateCa => rotate_ca(&cluster).await,
    }
}

async fn rotate_ca(cluster: &Cluster) -> Result<u8, Failure> {
    let maps: Api<ConfigMap> = Api::namespaced(cluster.client.clone(), &cluster.operator_namespace);
    let data = read(cluster, &maps).await?;
    let source = data.get(names::CA_SOURCE).map_or("", String::as_str);
    if source != names::CA_OWN {
        return Err(Failure::new(format!(
            "the CA comes from {source} in namespace {}: renew it there, and the operator follows. With cert-manager: \
             cmctl renew -n {0} NAME, where NAME is the Certificate",
            cluster.operator_namespace
        )));
    }
    let request = format!("{:.3}", Timestamp::now());
    let patch = json!({"metadata": {"annotations": {names::ANNOTATION_ROTATE: request}}});
    let rule = Rule::admin("configmaps", "get, patch");
    maps.patch(names::CA_CONFIG_MAP, &PatchParams::default(), &Patch::Merge(patch))
        .await
        .map_err(|error| cluster.dial_error(&error, &rule, "request a rotation of the CA"))?;
    let answered = async {
        loop {
            let data = read(cluster, &maps).await?;
            if let Some(text) = answer(&data, &request) {
                return Ok(text);
            }
            tokio::time::sleep(POLL).await;
        }
    };
    let text = tokio::time::timeout(LIMIT, answered).await.unwrap_or_else(|_| {
        Err(Failure::new(format!(
            "the operator has not answered within {} s. The request remains. Is the operator running? See: kubectl -n {} get pods",
            LIMIT.as_secs(),
            cluster.operator_namespace
        )))
    })?;
    print(&text)?;
    Ok(0)
}

async fn read(cluster: &Cluster, maps: &Api<ConfigMap>) -> Result<BTreeMap<String, String>, Failure> {
    let rule = Rule::admin("configmaps", "get, patch");
    let found = maps
        .get_opt(names::CA_CONFIG_MAP)
        .await
        .map_err(|error| cluster.dial_error(&error, &rule, "read the state of the CA"))?;
    let data = found.and_then(|map| map.data);
    Ok(data.ok_or_else(|| {
        DialError::Missing(format!(
            "no RemoteProcess operator with a CA of its own is ready in namespace {} (it has no ConfigMap {}). Name its \
             namespace by --operator-namespace or RPROC_OPERATOR_NAMESPACE",
            cluster.operator_namespace,
            names::CA_CONFIG_MAP
        ))
    })?)
}

/// What to print, once the operator has seen the request: a rotation that was under way already answers it as well.
fn answer(data: &BTreeMap<String, String>, request: &str) -> Option<String> {
    let value = |key: &str| data.get(key).map(String::as_str);
    match (value(names::CA_NEXT_SIGNS), value(names::CA_ANSWERED) == Some(request)) {
        (Some(signs), true) => Some(format!("announced the next CA; it signs from {signs} on\n")),
        (Some(signs), false) => Some(format!(
            "a rotation is under way already: the next CA signs from {signs} on. Another one follows it\n"
        )),
        (None, true) => Some("the CA was rotated\n".to_owned()),
        (None, false) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_answered_when_a_ca_is_announced() {
        let data = |pairs: &[(&str, &str)]| {
            let pairs = pairs
                .iter()
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
            pairs.collect::<BTreeMap<_, _>>()
        };
        assert_eq!(answer(&data(&[("phase", "Stable"), ("answered", "1")]), "2"), None);
        let announced = data(&[("answered", "2"), ("nextSignsFrom", "2026-11-29T12:00:00Z")]);
        assert_eq!(
            answer(&announced, "2").as_deref(),
            Some("announced the next CA; it signs from 2026-11-29T12:00:00Z on\n")
        );
        assert!(answer(&announced, "3").is_some_and(|text| text.contains("under way")));
    }
}
