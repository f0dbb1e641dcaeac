//! `rproc support-bundle`: one file with what is needed to find a fault, without secrets.

use std::fmt::Debug;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use flate2::Compression;
use flate2::write::GzEncoder;
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Event, Pod};
use kube::api::{ListParams, LogParams};
use kube::{Api, Resource};
use remoteprocess_api::{RemoteProcess, names};
use remoteprocess_client::Cluster;
use remoteprocess_client::retry::refusal;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{doctor, version};
use crate::args::{GlobalArgs, process_name};
use crate::failure::Failure;
use crate::output::complain;
use redact::Redacted;

mod redact;

/// Most objects of a kind.
const MAX_OBJECTS: usize = 500;
/// Objects in one answer of the API server.
const PAGE: u32 = 100;
/// Most bytes of the log of one container.
const MAX_LOG: i64 = 4 << 20;

/// Flags of `support-bundle`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct SupportBundleArgs {
    /// Names of the processes to include; default: all of the namespace
    #[arg(value_parser = process_name, value_name = "NAME")]
    pub names: Vec<String>,
    /// File to write; it must not exist. Default: rproc-support-TIME.tar.gz
    #[arg(short, long, value_name = "FILE")]
    pub file: Option<PathBuf>,
}

const EXAMPLES: &str =
    "The file contains the findings of rproc doctor, versions, the processes of the namespace and their
pods, the Deployment, pods, lease and logs of the operator, and Events of both namespaces.

Commands, arguments, values of environment variables and annotations, and output are replaced by REDACTED,
wherever they are found. Secrets and ConfigMaps are not read. Names, labels and images stay: read the file
before you send it to others.

Examples:
  rproc support-bundle
  rproc support-bundle build -n team-a -f build.tar.gz";

/// Writes the file.
///
/// # Errors
/// The file cannot be written. What cannot be read is named in `errors.txt`.
pub async fn run(global: &GlobalArgs, args: SupportBundleArgs) -> Result<u8, Failure> {
    let path = args.file.clone().unwrap_or_else(|| {
        let time = Timestamp::now().strftime("%Y%m%dT%H%M%SZ");
        format!("rproc-support-{time}.tar.gz").into()
    });
    let file = create(&path).map_err(|error| Failure::new(format!("cannot create {}: {error}", path.display())))?;
    let bundle = collect(global, &args).await;
    let errors = bundle.errors.len();
    let written = bundle.write(file);
    written.map_err(|error| Failure::new(format!("cannot write {}: {error}", path.display())))?;
    if errors > 0 {
        complain(&format!("{errors} parts are missing; errors.txt in the file says why"));
    }
    crate::print::print(&format!("{}\n", path.display()))?;
    Ok(0)
}

/// For you alone: names and labels may be confidential as well.
fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}

async fn collect(global: &GlobalArgs, args: &SupportBundleArgs) -> Bundle {
    let mut bundle = Bundle::default();
    bundle.text("doctor.txt", Ok(doctor::report(global).await));
    let cluster = match global.open().await {
        Ok(cluster) => cluster,
        Err(failure) => {
            bundle.errors.push(failure.text);
            return bundle;
        }
    };
    bundle.text("versions.json", version::report(&cluster).await);
    processes(&mut bundle, &cluster, &args.names).await;
    operator(&mut bundle, &cluster).await;
    // Otherwise most messages could not be understood.
    bundle.redacted.keep(&cluster.namespace);
    bundle.redacted.keep(&cluster.operator_namespace);
    bundle
}

async fn processes(bundle: &mut Bundle, cluster: &Arc<Cluster>, names: &[String]) {
    let is_wanted = |name: Option<&str>| names.is_empty() || names.iter().any(|wanted| Some(wanted.as_str()) == name);
    let api = cluster.processes();
    let found = list(&api, "", |object: &RemoteProcess| {
        is_wanted(object.metadata.name.as_deref())
    });
    bundle.objects("processes.yaml", found.await);
    let pods: Api<Pod> = Api::namespaced(cluster.client.clone(), &cluster.namespace);
    let found = list(&pods, names::LABEL_UID, |pod: &Pod| {
        let labels = pod.metadata.labels.as_ref();
        is_wanted(labels.and_then(|labels| labels.get(names::LABEL_NAME).map(String::as_str)))
    });
    bundle.objects("pods.yaml", found.await);
    let events: Api<Event> = Api::namespaced(cluster.client.clone(), &cluster.namespace);
    bundle.objects("events.yaml", list(&events, "", all).await);
}

async fn operator(bundle: &mut Bundle, cluster: &Arc<Cluster>) {
    let (client, namespace) = (cluster.client.clone(), &cluster.operator_namespace);
    let label = format!("app.kubernetes.io/name={}", names::APP_NAME);
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), namespace);
    bundle.objects("operator/deployments.yaml", list(&deployments, &label, all).await);
    let leases: Api<Lease> = Api::namespaced(client.clone(), namespace);
    bundle.objects("operator/leases.yaml", list(&leases, "", all).await);
    let events: Api<Event> = Api::namespaced(client.clone(), namespace);
    bundle.objects("operator/events.yaml", list(&events, "", all).await);
    let api: Api<Pod> = Api::namespaced(client, namespace);
    let pods = list(&api, &label, all).await;
    let names: Vec<String> = pods
        .iter()
        .flat_map(|pods| &pods.items)
        .filter_map(|pod| pod.metadata.name.clone())
        .collect();
    bundle.objects("operator/pods.yaml", pods);
    for name in names {
        for previous in [false, true] {
            let params = LogParams {
                previous,
                limit_bytes: Some(MAX_LOG),
                timestamps: true,
                ..LogParams::default()
            };
            let text = api.logs(&name, &params).await;
            // Most containers have no predecessor.
            if previous && text.is_err() {
                continue;
            }
            let file = format!("operator/logs/{name}{}.log", if previous { ".previous" } else { "" });
            bundle.text(&file, text.map_err(|error| error.to_string()));
        }
    }
}

/// Objects of a kind.
struct Found<K> {
    items: Vec<K>,
    /// There are more than [`MAX_OBJECTS`]; these are the first ones.
    is_cut: bool,
}

/// Every object is wanted.
fn all<K>(_: &K) -> bool {
    true
}

/// The first [`MAX_OBJECTS`] objects with this label that are wanted, from as many pages as it takes.
async fn list<K>(api: &Api<K>, label: &str, is_wanted: impl Fn(&K) -> bool) -> Result<Found<K>, String>
where
    K: Clone + DeserializeOwned + Debug + Resource,
{
    let mut params = ListParams::default().labels(label).limit(PAGE);
    let mut items = Vec::new();
    loop {
        let page = api.list(&params).await.map_err(|error| refusal(&error))?;
        items.extend(page.items.into_iter().filter(&is_wanted));
        let next = page.metadata.continue_.filter(|token| !token.is_empty());
        if items.len() > MAX_OBJECTS || next.is_none() {
            break;
        }
        params.continue_token = next;
    }
    let is_cut = items.len() > MAX_OBJECTS;
    items.truncate(MAX_OBJECTS);
    Ok(Found { items, is_cut })
}

/// The files so far, and what could not be read.
#[derive(Default)]
struct Bundle {
    files: Vec<(String, String)>,
    errors: Vec<String>,
    redacted: Redacted,
}

impl Bundle {
    /// Adds objects, redacted.
    fn objects(&mut self, path: &str, found: Result<Found<impl Serialize>, String>) {
        let text = found.and_then(|found| {
            if found.is_cut {
                self.errors
                    .push(format!("{path}: there are more; these are the first {MAX_OBJECTS}"));
            }
            let mut value = serde_json::to_value(found.items).map_err(|error| error.to_string())?;
            // The arguments of the operator are settings; its Secrets come by reference.
            match path.starts_with("operator/") {
                true => self.redacted.redact_but_arguments(&mut value),
                false => self.redacted.redact(&mut value),
            }
            serde_saphyr::to_string(&value).map_err(|error| error.to_string())
        });
        self.text(path, text);
    }

    fn text(&mut self, path: &str, text: Result<String, String>) {
        match text {
            Ok(text) => self.files.push((path.to_owned(), text)),
            Err(why) => self.errors.push(format!("{path}: {why}")),
        }
    }

    /// Writes all files. Texts that were redacted anywhere are removed everywhere.
    fn write(mut self, file: File) -> io::Result<()> {
        if !self.errors.is_empty() {
            let errors = self.errors.join("\n") + "\n";
            self.files.push(("errors.txt".to_owned(), errors));
        }
        let mut archive = tar::Builder::new(GzEncoder::new(file, Compression::default()));
        for (path, text) in &self.files {
            let text = self.redacted.scrub(text);
            let mut header = tar::Header::new_gnu();
            header.set_mode(0o600);
            header.set_size(text.len() as u64);
            header.set_mtime(u64::try_from(Timestamp::now().as_second()).unwrap_or_default());
            archive.append_data(&mut header, format!("rproc-support/{path}"), text.as_bytes())?;
        }
        let mut file = archive.into_inner()?.finish()?;
        file.flush()?;
        file.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use serde_json::{Value, json};

    use super::*;

    fn read(path: &Path) -> Vec<(String, String)> {
        let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(File::open(path).unwrap()));
        let entries = archive.entries().unwrap().map(|entry| {
            let mut entry = entry.unwrap();
            let mut text = String::new();
            entry.read_to_string(&mut text).unwrap();
            (entry.path().unwrap().display().to_string(), text)
        });
        entries.collect()
    }

    fn found(items: Vec<Value>) -> Result<Found<Value>, String> {
        Ok(Found { items, is_cut: false })
    }

    /// Answers each page of a list of `count` processes.
    fn server(count: usize) -> Api<RemoteProcess> {
        let service = tower::service_fn(move |request: http::Request<kube::client::Body>| async move {
            let query = request.uri().query().unwrap_or_default();
            let begin = query.split_once("continue=").map_or(0, |(_, rest)| {
                rest.split('&')
                    .next()
                    .and_then(|number| number.parse().ok())
                    .unwrap_or(0)
            });
            let end = count.min(begin + PAGE as usize);
            let item = |number: usize| {
                json!({
                    "apiVersion": "remoteprocess.dev/v1alpha1", "kind": "RemoteProcess",
                    "metadata": {"name": format!("p{number}")}, "spec": {"image": "i", "command": ["x"]},
                })
            };
            let next = if end < count { end.to_string() } else { String::new() };
            let page = json!({
                "apiVersion": "remoteprocess.dev/v1alpha1", "kind": "RemoteProcessList", "metadata": {"continue": next},
                "items": (begin..end).map(item).collect::<Vec<_>>(),
            });
            let body = kube::client::Body::from(page.to_string().into_bytes());
            Ok::<_, std::convert::Infallible>(http::Response::new(body))
        });
        Api::namespaced(kube::Client::new(service, "default"), "default")
    }

    #[tokio::test]
    async fn a_process_on_the_last_page_is_found() {
        let is_wanted = |object: &RemoteProcess| object.metadata.name.as_deref() == Some("p1234");
        let found = list(&server(1235), "", is_wanted).await.unwrap();
        assert_eq!((found.items.len(), found.is_cut), (1, false));
    }

    #[tokio::test]
    async fn objects_that_are_left_out_are_reported() {
        for (count, kept, is_cut) in [(MAX_OBJECTS, MAX_OBJECTS, false), (MAX_OBJECTS + 1, MAX_OBJECTS, true)] {
            let found = list(&server(count), "", all).await.unwrap();
            assert_eq!((found.items.len(), found.is_cut), (kept, is_cut), "{count}");
        }
        let mut bundle = Bundle::default();
        bundle.objects("processes.yaml", list(&server(MAX_OBJECTS + 1), "", all).await);
        assert_eq!(bundle.files.len(), 1, "what was found is there");
        assert!(
            bundle.errors[0].contains("these are the first 500"),
            "{:?}",
            bundle.errors
        );
    }

    #[test]
    fn what_is_secret_in_one_file_is_in_none() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("bundle.tar.gz");
        let mut bundle = Bundle::default();
        bundle.text(
            "operator/logs/a.log",
            Ok("cannot run canary-argument of canary-variable\n".to_owned()),
        );
        bundle.objects(
            "processes.yaml",
            found(vec![json!({"spec": {
                "command": ["x", "canary-argument"], "env": [{"name": "TOKEN", "value": "canary-variable"}],
            }})]),
        );
        bundle.objects(
            "events.yaml",
            found(vec![json!({"message": "exec: \"canary-argument\": not found"})]),
        );
        bundle.objects(
            "operator/deployments.yaml",
            found(vec![
                json!({"args": ["--archive-store=S3"], "env": [{"name": "KEY", "value": "canary-operator"}]}),
            ]),
        );
        bundle.objects("pods.yaml", Err::<Found<Value>, _>("pods is forbidden".to_owned()));
        bundle.write(create(&path).unwrap()).unwrap();
        let files = read(&path);
        let all = files
            .iter()
            .map(|(path, text)| format!("{path}\n{text}"))
            .collect::<String>();
        assert!(!all.contains("canary"), "{all}");
        for kept in [
            "TOKEN",
            "--archive-store=S3",
            "cannot run REDACTED",
            "pods.yaml: pods is forbidden",
        ] {
            assert!(all.contains(kept), "{kept}: {all}");
        }
        assert!(create(&path).is_err(), "a file that exists is not overwritten");
        use std::os::unix::fs::PermissionsExt;
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    }
}
