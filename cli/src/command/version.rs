//! `rproc version`: the versions of client, operator and Kubernetes.

use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::ListParams;
use remoteprocess_api::names;
use remoteprocess_client::{Cluster, Rule};
use serde::Serialize;

use crate::args::GlobalArgs;
use crate::failure::Failure;
use crate::print::{DataFormat, print};

/// Flags of `version`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  rproc version\n  rproc version --client -o json")]
pub struct VersionArgs {
    /// Print only the version of rproc
    #[arg(long)]
    pub client: bool,
    /// Format
    #[arg(short, long, value_enum)]
    pub output: Option<DataFormat>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Versions {
    client: &'static str,
    protocol: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    operator: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    kubernetes: Option<String>,
}

impl Default for Versions {
    fn default() -> Self {
        Self {
            client: env!("CARGO_PKG_VERSION"),
            protocol: remoteprocess_proto::PROTOCOL,
            operator: None,
            kubernetes: None,
        }
    }
}

/// Prints the versions.
pub async fn run(global: &GlobalArgs, args: VersionArgs) -> Result<u8, Failure> {
    let versions = match args.client {
        true => Versions::default(),
        false => all(global.open().await?.as_ref()).await?,
    };
    if let Some(format) = args.output {
        format.print(&versions)?;
        return Ok(0);
    }
    let mut text = format!("Client:      {} (protocol {})\n", versions.client, versions.protocol);
    for (name, version) in [
        ("Operator:  ", &versions.operator),
        ("Kubernetes:", &versions.kubernetes),
    ] {
        if let Some(version) = version {
            text.push_str(&format!("{name}  {version}\n"));
        }
    }
    print(&text)?;
    Ok(0)
}

/// All versions, as JSON.
pub(super) async fn report(cluster: &Cluster) -> Result<String, String> {
    let versions = all(cluster).await.map_err(|failure| failure.text)?;
    serde_json::to_string_pretty(&versions).map_err(|error| error.to_string())
}

async fn all(cluster: &Cluster) -> Result<Versions, Failure> {
    let info = cluster.client.apiserver_version().await;
    let info = info.map_err(|error| {
        let rule = Rule::connect("", "/version", "get");
        cluster.error(&error, &rule, "ask the API server for its version")
    })?;
    Ok(Versions {
        operator: Some(operator(cluster).await),
        kubernetes: Some(info.git_version),
        ..Versions::default()
    })
}

/// The version label of the operator's pods; more than one during an update.
async fn operator(cluster: &Cluster) -> String {
    let api: Api<Pod> = Api::namespaced(cluster.client.clone(), &cluster.operator_namespace);
    let selector = format!("app.kubernetes.io/name={}", names::APP_NAME);
    let pods = match api.list(&ListParams::default().labels(&selector)).await {
        Ok(pods) => pods.items,
        Err(error) => return format!("unknown ({})", remoteprocess_client::retry::innermost(&error)),
    };
    let version = |pod: Pod| pod.metadata.labels?.remove("app.kubernetes.io/version");
    let mut versions: Vec<String> = pods.into_iter().filter_map(version).collect();
    versions.sort();
    versions.dedup();
    if versions.is_empty() {
        return format!("none in namespace {}", cluster.operator_namespace);
    }
    versions.join(", ")
}
