//! `rproc doctor`: checks the installation and the way to it, and names a fix for each finding.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::ListParams;
use kube::client::Body;
use remoteprocess_api::names;
use remoteprocess_client::dial::CallError;
use remoteprocess_client::{Cluster, Dial, DialError, Relay, Rule};
use remoteprocess_proto::PROTOCOL;
use remoteprocess_proto::v1::ListRequest;
use serde::Serialize;
use serde_json::Value;
use strum::Display;

use super::whoami::way;
use crate::args::GlobalArgs;
use crate::failure::Failure;
use crate::print::{DataFormat, print};
use crate::render::escape;

mod inside;

/// Time limit of one check.
const LIMIT: Duration = Duration::from_secs(30);
/// The oldest Kubernetes that is supported, as in the chart (`kubeVersion`).
const OLDEST: (u32, u32) = (1, 33);
/// Clocks that differ by more make certificates invalid that are new, or that are about to be renewed.
const SKEW: SignedDuration = SignedDuration::from_secs(60);
/// A CA that ends within this time should be replaced.
const SOON: SignedDuration = SignedDuration::from_hours(30 * 24);
/// A certificate of a replica, which is renewed long before its end, is in danger if it ends within this time.
const SOON_LEAF: SignedDuration = SignedDuration::from_secs(120);
/// Most processes of the namespace that are looked at.
const MAX_PROCESSES: u32 = 500;

/// Flags of `doctor`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct DoctorArgs {
    /// Format
    #[arg(short, long, value_enum)]
    pub output: Option<DataFormat>,
}

const EXAMPLES: &str = "Checks the kubeconfig, the API server, your clock, the CRD, the operator, your
permissions, the certificate authority, your certificate, the relay, the operator's metrics (its certificate,
its archive, which replica reconciles), and whether agents of the namespace are cut off.

Examples:
  rproc doctor
  rproc doctor -n team-a -o json

The exit code is 0 if nothing has failed, and 1 otherwise. Warnings do not count.";

/// What a check found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Display)]
enum Grade {
    Ok,
    Warning,
    Failed,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Finding {
    check: &'static str,
    result: Grade,
    message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    fix: Option<String>,
}

impl Finding {
    fn ok(check: &'static str, message: impl Into<String>) -> Self {
        Self {
            check,
            result: Grade::Ok,
            message: message.into(),
            fix: None,
        }
    }

    fn warning(check: &'static str, message: impl Into<String>, fix: impl Into<String>) -> Self {
        Self {
            result: Grade::Warning,
            fix: Some(fix.into()),
            ..Self::ok(check, message)
        }
    }

    /// The message names the fix itself, unless there is one.
    fn failed(check: &'static str, message: impl Into<String>, fix: Option<&str>) -> Self {
        Self {
            result: Grade::Failed,
            fix: fix.map(str::to_owned),
            ..Self::ok(check, message)
        }
    }
}

/// Runs all checks that make sense, and prints what they found.
pub async fn run(global: &GlobalArgs, args: DoctorArgs) -> Result<u8, Failure> {
    let found = findings(global).await;
    match args.output {
        Some(format) => format.print(&found)?,
        None => print(&text(&found))?,
    }
    Ok(u8::from(found.iter().any(|finding| finding.result == Grade::Failed)))
}

/// All findings, as text.
pub(super) async fn report(global: &GlobalArgs) -> String {
    text(&findings(global).await)
}

async fn findings(global: &GlobalArgs) -> Vec<Finding> {
    match global.open().await {
        Ok(cluster) => examine(&cluster).await,
        Err(failure) => vec![Finding::failed("Kubeconfig", failure.text, None)],
    }
}

async fn examine(cluster: &Arc<Cluster>) -> Vec<Finding> {
    let account = &cluster.account;
    let mut found = vec![Finding::ok(
        "Kubeconfig",
        format!("{}: {}", account.owner, account.means),
    )];
    let api_server = within("API server", api_server(cluster)).await;
    let is_reached = api_server.iter().all(|finding| finding.result != Grade::Failed);
    found.extend(api_server);
    // Nothing else can be asked.
    if !is_reached {
        return found;
    }
    found.extend(within("CRD", crd(cluster)).await);
    found.extend(within("Operator", operator(cluster)).await);
    found.extend(within("Permissions", permissions(cluster)).await);
    found.extend(within("Relay", relay(cluster)).await);
    found.extend(within("Metrics", metrics(cluster)).await);
    found.extend(within("Agents", agents(cluster)).await);
    found
}

async fn metrics(cluster: &Cluster) -> Vec<Finding> {
    match remoteprocess_client::metrics::read(cluster).await {
        Ok(replicas) => inside::of_metrics(&replicas, Timestamp::now()),
        Err(error) => {
            let fix = "doctor reads them by a port-forward to port 8080 of the operator's pods";
            vec![Finding::warning("Metrics", error.to_string(), fix)]
        }
    }
}

async fn agents(cluster: &Cluster) -> Vec<Finding> {
    let listed = cluster
        .processes()
        .list(&ListParams::default().limit(MAX_PROCESSES))
        .await;
    match listed {
        Ok(found) => inside::of_processes(&found.items, Timestamp::now()),
        // The permissions and the CRD are findings of their own.
        Err(kube::Error::Api(status)) if matches!(status.code, 403 | 404) => Vec::new(),
        Err(error) => {
            let rule = Rule::process("list", "remoteprocess-view");
            vec![Finding::failed(
                "Agents",
                cluster.explain(&error, &rule, "list the processes"),
                None,
            )]
        }
    }
}

async fn within(check: &'static str, work: impl Future<Output = Vec<Finding>>) -> Vec<Finding> {
    tokio::time::timeout(LIMIT, work).await.unwrap_or_else(|_| {
        let message = format!("no answer within {} s", LIMIT.as_secs());
        let fix = "Check the network between you and the cluster";
        vec![Finding::failed(check, message, Some(fix))]
    })
}

async fn api_server(cluster: &Cluster) -> Vec<Finding> {
    let failed = |error: &kube::Error| {
        let rule = Rule::connect("", "/version", "get");
        let message = cluster.explain(error, &rule, "reach the API server");
        vec![Finding::failed("API server", message, None)]
    };
    let version = match cluster.client.apiserver_version().await {
        Ok(info) => info.git_version,
        Err(error) => return failed(&error),
    };
    let mut found = vec![kubernetes(&cluster.url, &version)];
    let request = http::Request::get("/version").body(Body::empty());
    if let Ok(request) = request
        && let Ok(answer) = cluster.client.send(request).await
        && let Some(date) = answer.headers().get(http::header::DATE)
        && let Some(date) = date.to_str().ok().and_then(|date| jiff::fmt::rfc2822::parse(date).ok())
    {
        found.push(clock(date.timestamp(), Timestamp::now()));
    }
    found
}

fn kubernetes(url: &str, version: &str) -> Finding {
    let message = format!("{url} runs Kubernetes {version}");
    let mut numbers = version.trim_start_matches('v').split('.').map(str::parse::<u32>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) if (major, minor) < OLDEST => {
            let fix = format!("Update the cluster to Kubernetes {}.{} or newer", OLDEST.0, OLDEST.1);
            Finding::warning("API server", message, fix)
        }
        _ => Finding::ok("API server", message),
    }
}

fn clock(server: Timestamp, here: Timestamp) -> Finding {
    // The date of an answer has no fractions of a second.
    let skew = here.duration_since(server).abs();
    match skew > SKEW {
        true => {
            let message = format!("your clock and that of the API server differ by {} s", skew.as_secs());
            let fix = "Set the clock of this machine, with NTP for example: certificates are valid by time";
            Finding::failed("Clock", message, Some(fix))
        }
        false => Finding::ok("Clock", "agrees with the API server"),
    }
}

async fn crd(cluster: &Cluster) -> Vec<Finding> {
    let group = format!("{}/{}", names::GROUP, names::VERSION);
    let found = match cluster.client.list_api_group_resources(&group).await {
        Ok(list) if list.resources.iter().any(|resource| resource.name == "remoteprocesses") => {
            fields(&group, schema(cluster, &group).await)
        }
        Err(error) if !matches!(&error, kube::Error::Api(status) if status.code == 404) => {
            let rule = Rule::connect("", "/apis", "get");
            Finding::failed("CRD", cluster.explain(&error, &rule, "read which kinds exist"), None)
        }
        _ => {
            let fix = "Install the chart with crds.enabled=true (the default)";
            Finding::failed("CRD", format!("{group} is not installed"), Some(fix))
        }
    };
    vec![found]
}

/// The schema of a process, as the API server publishes it; `None` if it does not.
async fn schema(cluster: &Cluster, group: &str) -> Option<Value> {
    let request = http::Request::get(format!("/openapi/v3/apis/{group}"))
        .body(Vec::new())
        .ok()?;
    let mut page: Value = cluster.client.request(request).await.ok()?;
    let schemas = page.pointer_mut("/components/schemas")?.as_object_mut()?;
    let name = schemas.keys().find(|name| name.ends_with(".RemoteProcess"))?.clone();
    schemas.remove(&name)
}

/// Compares the fields of spec and status with those that this rproc knows.
fn fields(group: &str, served: Option<Value>) -> Finding {
    let Some(served) = served else {
        return Finding::ok("CRD", format!("{group} is installed"));
    };
    let own = serde_json::to_value(remoteprocess_api::crd::crd()).unwrap_or_default();
    let own = own.pointer("/spec/versions/0/schema/openAPIV3Schema").cloned();
    let own = own.unwrap_or_default();
    let names = |schema: &Value, part: &str| -> BTreeSet<String> {
        let fields = schema.pointer(&format!("/properties/{part}/properties"));
        let fields = fields.and_then(Value::as_object);
        fields
            .map(|fields| fields.keys().map(|name| format!("{part}.{name}")).collect())
            .unwrap_or_default()
    };
    let all = |schema: &Value| &names(schema, "spec") | &names(schema, "status");
    let (served, own) = (all(&served), all(&own));
    let list = |names: BTreeSet<String>| names.into_iter().collect::<Vec<_>>().join(", ");
    let (missing, newer) = (list(&own - &served), list(&served - &own));
    match (missing.as_str(), newer.as_str()) {
        ("", "") => Finding::ok("CRD", format!("{group} is installed, with the fields that rproc knows")),
        ("", newer) => {
            let message = format!("{group} has fields that this rproc does not know: {newer}");
            Finding::warning("CRD", message, "Use the version of rproc that belongs to the chart")
        }
        (missing, _) => {
            let message = format!("{group} lacks fields that this rproc sets or shows: {missing}");
            let fix = "Upgrade the chart, with crds.enabled=true (the default), or apply crds.yaml of the release";
            Finding::warning("CRD", message, fix)
        }
    }
}

/// A pod of the operator.
struct Replica {
    name: String,
    version: String,
    is_ready: bool,
}

async fn operator(cluster: &Cluster) -> Vec<Finding> {
    let api: Api<Pod> = Api::namespaced(cluster.client.clone(), &cluster.operator_namespace);
    let selector = format!("app.kubernetes.io/name={}", names::APP_NAME);
    let pods = match api.list(&ListParams::default().labels(&selector)).await {
        Ok(pods) => pods.items,
        Err(error) => {
            let rule = Rule::connect("", "pods", "get, list");
            let message = cluster.explain(&error, &rule, "list the operator's pods");
            return vec![Finding::failed("Operator", message, None)];
        }
    };
    let replicas: Vec<Replica> = pods.iter().map(replica).collect();
    vec![replicas_found(
        &cluster.operator_namespace,
        env!("CARGO_PKG_VERSION"),
        &replicas,
    )]
}

fn replica(pod: &Pod) -> Replica {
    let labels = pod.metadata.labels.as_ref();
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    let is_true = |kind: &str| {
        let mut conditions = conditions.into_iter().flatten();
        conditions.any(|condition| condition.type_ == kind && condition.status == "True")
    };
    Replica {
        name: pod.metadata.name.clone().unwrap_or_default(),
        version: labels
            .and_then(|labels| labels.get("app.kubernetes.io/version").cloned())
            .unwrap_or_default(),
        is_ready: is_true("Ready") && pod.metadata.deletion_timestamp.is_none(),
    }
}

fn replicas_found(namespace: &str, client: &str, replicas: &[Replica]) -> Finding {
    let ready = replicas.iter().filter(|replica| replica.is_ready).count();
    let mut versions: Vec<&str> = replicas.iter().map(|replica| replica.version.as_str()).collect();
    versions.sort_unstable();
    versions.dedup();
    let message = format!(
        "{ready} of {} pods are ready in namespace {namespace}, version {}; rproc has version {client}",
        replicas.len(),
        versions.join(" and ")
    );
    let late = replicas.iter().find(|replica| !replica.is_ready);
    match late {
        None if replicas.is_empty() => {
            let message = format!("there is no operator in namespace {namespace}");
            let fix = "Install the chart, or name the namespace by --operator-namespace or RPROC_OPERATOR_NAMESPACE";
            Finding::failed("Operator", message, Some(fix))
        }
        Some(late) => {
            let fix = format!("See: kubectl describe pod -n {namespace} {}", late.name);
            match ready {
                0 => Finding::failed("Operator", message, Some(&fix)),
                _ => Finding::warning("Operator", message, fix),
            }
        }
        None if versions != [client] => {
            let fix = "Use the same version of rproc and of the chart";
            Finding::warning("Operator", message, fix)
        }
        None => Finding::ok("Operator", message),
    }
}

/// What the verbs need, from reading to writing.
fn rights() -> [(Rule, &'static str); 8] {
    let (view, edit) = ("remoteprocess-view", "remoteprocess-edit");
    [
        (Rule::process("get", view), "describe and wait"),
        (Rule::process("list", view), "get"),
        (Rule::process("watch", view), "run and wait"),
        (Rule::part("remoteprocesses/log", "get", view), "run and logs"),
        (Rule::process("create", edit), "run"),
        (Rule::process("delete", edit), "delete and run --rm"),
        (Rule::part("remoteprocesses/signal", "create", edit), "stop and signal"),
        (
            Rule::part("remoteprocesses/attach", "create", edit),
            "attach -i and run -i",
        ),
    ]
}

async fn permissions(cluster: &Cluster) -> Vec<Finding> {
    let mut found = Vec::new();
    let certificate = Rule::connect("certificates.k8s.io", "certificatesigningrequests", "create");
    if cluster.has_right(&certificate, None).await == Some(false) {
        let message = cluster.refusal(
            &certificate,
            "request a client certificate, which each way to the relay needs",
        );
        found.push(Finding::failed("Permissions", message, None));
    }
    let namespace = &cluster.namespace;
    for (rule, verbs) in rights() {
        if cluster.has_right(&rule, Some(namespace)).await == Some(false) {
            let message = format!("rproc {verbs} does not work for you in namespace {namespace}");
            let fix = cluster.refusal(&rule, "do that");
            found.push(Finding::warning("Permissions", message, fix));
        }
    }
    if found.is_empty() {
        found.push(Finding::ok("Permissions", format!("all in namespace {namespace}")));
    }
    found
}

async fn relay(cluster: &Arc<Cluster>) -> Vec<Finding> {
    let mut found = Vec::new();
    let failed = |check, error: &DialError| Finding::failed(check, error.to_string(), None);
    let mut relay = Relay::new(cluster.clone());
    let trust = match relay.trust().await {
        Ok(trust) => trust,
        Err(error) => return vec![failed("CA", &error)],
    };
    let ends = remoteprocess_tls::expiries(&trust.bundle);
    found.push(match ends {
        Ok(ends) => authority(
            ends.into_iter().filter_map(|end| end.try_into().ok()).max(),
            Timestamp::now(),
        ),
        Err(error) => Finding::failed("CA", error.to_string(), Some("Restore the Secret remoteprocess-ca")),
    });
    match relay.identity(&trust).await {
        Ok(identity) => {
            let end = Timestamp::try_from(identity.not_after()).map(|end| format!("valid until {end:.0}"));
            found.push(Finding::ok("Certificate", end.unwrap_or_default()));
        }
        Err(error) => {
            found.push(failed("Certificate", &error));
            return found;
        }
    }
    let way = match relay.connect_by().await {
        Ok((_, found)) => way(found, &cluster.operator_namespace),
        Err(error) => {
            found.push(failed("Relay", &error));
            return found;
        }
    };
    let request = ListRequest {
        protocol: PROTOCOL,
        namespace: cluster.namespace.clone(),
    };
    let begin = tokio::time::Instant::now();
    let listed = relay.call(|mut client| {
        let request = request.clone();
        async move { client.list(request).await }
    });
    found.push(match listed.await {
        Ok(_) => Finding::ok(
            "Relay",
            format!("{way} answers after {} ms", begin.elapsed().as_millis()),
        ),
        // An answer shows that the way works; the permissions were checked before.
        Err(CallError::Relay(status)) if status.code() == tonic::Code::PermissionDenied => {
            Finding::ok("Relay", format!("{way} answers"))
        }
        Err(error) => Finding::failed("Relay", format!("{way}: {error}"), None),
    });
    found
}

fn authority(end: Option<Timestamp>, now: Timestamp) -> Finding {
    let fix = "Run: rproc admin rotate-ca (docs/ca.md)";
    let Some(end) = end else {
        return Finding::failed("CA", "the operator publishes no certificate authority", Some(fix));
    };
    match end.duration_since(now) {
        left if left <= SignedDuration::ZERO => Finding::failed("CA", format!("ended at {end:.0}"), Some(fix)),
        left if left <= SOON => Finding::warning("CA", format!("ends at {end:.0}"), fix),
        _ => Finding::ok("CA", format!("valid until {end:.0}")),
    }
}

fn text(found: &[Finding]) -> String {
    let mut text = String::new();
    for Finding {
        check,
        result,
        message,
        fix,
    } in found
    {
        let message = message
            .lines()
            .map(escape)
            .collect::<Vec<_>>()
            .join("\n                      ");
        text.push_str(&format!("{:<9}{check:<13}{message}\n", result.to_string()));
        for (index, line) in fix.iter().flat_map(|fix| fix.lines()).enumerate() {
            let begin = if index == 0 { "Fix: " } else { "     " };
            text.push_str(&format!("{:22}{begin}{}\n", "", escape(line)));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn clocks_that_differ_by_minutes_are_found() {
        let server = at("2026-01-01T00:00:00Z");
        for (here, expected) in [
            ("2026-01-01T00:00:01.9Z", Grade::Ok),
            ("2026-01-01T00:05:00Z", Grade::Failed),
            ("2025-12-31T23:55:00Z", Grade::Failed),
        ] {
            assert_eq!(clock(server, at(here)).result, expected, "{here}");
        }
    }

    #[test]
    fn a_certificate_authority_that_ends_soon_or_has_ended_is_found() {
        let now = at("2026-01-01T00:00:00Z");
        for (end, expected) in [
            (Some("2030-01-01T00:00:00Z"), Grade::Ok),
            (Some("2026-01-20T00:00:00Z"), Grade::Warning),
            (Some("2025-12-31T00:00:00Z"), Grade::Failed),
            (None, Grade::Failed),
        ] {
            assert_eq!(authority(end.map(at), now).result, expected, "{end:?}");
        }
    }

    #[test]
    fn an_old_cluster_and_another_version_are_warnings_and_no_operator_is_a_failure() {
        assert_eq!(kubernetes("u", "v1.32.9+k3s1").result, Grade::Warning);
        assert_eq!(kubernetes("u", "v1.33.0").result, Grade::Ok);
        let replica = |version: &str, is_ready| Replica {
            name: "pod".into(),
            version: version.into(),
            is_ready,
        };
        for (replicas, expected) in [
            (vec![replica("1", true), replica("1", true)], Grade::Ok),
            (vec![replica("1", true), replica("1", false)], Grade::Warning),
            (vec![replica("1", true), replica("2", true)], Grade::Warning),
            (vec![replica("2", true)], Grade::Warning),
            (vec![replica("1", false)], Grade::Failed),
            (vec![], Grade::Failed),
        ] {
            assert_eq!(replicas_found("system", "1", &replicas).result, expected);
        }
    }

    #[test]
    fn a_definition_of_another_version_is_found() {
        let own = serde_json::to_value(remoteprocess_api::crd::crd()).unwrap();
        let own = own.pointer("/spec/versions/0/schema/openAPIV3Schema").unwrap();
        assert_eq!(fields("g", Some(own.clone())).result, Grade::Ok);
        let mut newer = own.clone();
        newer["properties"]["spec"]["properties"]["fromTheFuture"] = serde_json::json!({});
        let finding = fields("g", Some(newer));
        assert_eq!(finding.result, Grade::Warning);
        assert!(finding.message.contains("spec.fromTheFuture"), "{finding:?}");
        let mut older = own.clone();
        older["properties"]["status"]["properties"]
            .as_object_mut()
            .unwrap()
            .remove("reason");
        let finding = fields("g", Some(older));
        assert!(
            finding.message.contains("lacks") && finding.message.contains("status.reason"),
            "{finding:?}"
        );
    }

    #[test]
    fn each_finding_has_its_fix_below_it() {
        let found = [
            Finding::ok("CRD", "is installed"),
            Finding::warning(
                "Permissions",
                "rproc run does not work",
                "you may not\nThe missing rule:",
            ),
            Finding::failed("CA", "ended", Some("Rotate it")),
        ];
        insta::assert_snapshot!(text(&found), @r"
        Ok       CRD          is installed
        Warning  Permissions  rproc run does not work
                              Fix: you may not
                                   The missing rule:
        Failed   CA           ended
                              Fix: Rotate it
        ");
    }
}
