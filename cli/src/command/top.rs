//! `rproc top`: what running processes use and write at the moment.

use std::collections::HashMap;
use std::time::Duration;

use futures::StreamExt;
use kube::Api;
use kube::api::ListParams;
use remoteprocess_api::{RemoteProcess, RemoteProcessStatus, names};
use remoteprocess_client::{Cluster, Dial, Relay, Rule};
use remoteprocess_proto::PROTOCOL;
use remoteprocess_proto::v1::output_frame::Frame;
use remoteprocess_proto::v1::relay_client::RelayClient;
use remoteprocess_proto::v1::{ProcessKey, WatchOutputRequest};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep, timeout};
use tonic::transport::Channel;

use crate::args::{GlobalArgs, duration, process_name};
use crate::failure::Failure;
use crate::output::complain;
use crate::print::{DataFormat, print};
use crate::render::Table;

/// Time limit for one question to the relay.
const LIMIT: Duration = Duration::from_secs(10);
/// Questions to the relay at a time.
const AT_ONCE: usize = 16;
/// Most processes that are shown: each one is two calls to the relay.
const MAX_PROCESSES: usize = 500;

/// Flags of `top`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct TopArgs {
    /// Names of the processes; default: all that run
    #[arg(value_parser = process_name, value_name = "NAME")]
    pub names: Vec<String>,
    /// Across all namespaces
    #[arg(short = 'A', long, conflicts_with = "names")]
    pub all_namespaces: bool,
    /// Only processes with these labels: app=web,tier!=test
    #[arg(short = 'l', long, conflicts_with = "names")]
    pub selector: Option<String>,
    /// Time over which the rate of output is measured
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "2s")]
    pub interval: Duration,
    /// Format
    #[arg(short, long, value_enum)]
    pub output: Option<DataFormat>,
    /// Print no header line
    #[arg(long)]
    pub no_headers: bool,
}

const EXAMPLES: &str = "CPU and memory are those of the container of the program, as the metrics API of Kubernetes
(metrics.k8s.io) has them; they are missing on a cluster without it. OUTPUT/S is measured now, and OUTPUT is what
the attempt has written so far.

Examples:
  rproc top
  rproc top -A --interval 10s
  rproc top build -o json";

/// What one process uses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Use {
    namespace: String,
    name: String,
    attempt: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    cpu_millicores: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    memory_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    output_bytes_per_second: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    output_bytes: Option<u64>,
}

/// Prints what the running processes use.
///
/// # Errors
/// The processes cannot be listed. What else is not known is reported and left out.
pub async fn run(global: &GlobalArgs, args: TopArgs) -> Result<u8, Failure> {
    let cluster = global.open().await?;
    let objects = running(&cluster, &args).await?;
    if objects.is_empty() {
        complain("no process runs");
        return Ok(0);
    }
    let pods = metrics(&cluster, args.all_namespaces).await.unwrap_or_else(|why| {
        complain(&format!("CPU and memory are not known: {why}"));
        HashMap::new()
    });
    let written = rates(&cluster, &objects, args.interval).await.unwrap_or_else(|why| {
        complain(&format!("the rate of output is not known: {why}"));
        HashMap::new()
    });
    let uses: Vec<Use> = objects.iter().map(|object| use_of(object, &pods, &written)).collect();
    match args.output {
        Some(format) => format.print(&uses)?,
        None => print(&text(&uses, args.all_namespaces, !args.no_headers))?,
    }
    Ok(0)
}

async fn running(cluster: &Cluster, args: &TopArgs) -> Result<Vec<RemoteProcess>, Failure> {
    let api: Api<RemoteProcess> = match args.all_namespaces {
        true => Api::all(cluster.client.clone()),
        false => cluster.processes(),
    };
    let params = ListParams {
        label_selector: args.selector.clone(),
        field_selector: Some("status.phase!=Succeeded,status.phase!=Failed".to_owned()),
        ..ListParams::default()
    };
    let found = api.list(&params).await;
    let rule = Rule::process("list", "remoteprocess-view");
    let mut found = found
        .map_err(|error| cluster.error(&error, &rule, "list the processes"))?
        .items;
    let name = |object: &RemoteProcess| object.metadata.name.clone().unwrap_or_default();
    for wanted in &args.names {
        if !found.iter().any(|object| name(object) == *wanted) {
            return Err(Failure::new(format!(
                "no process {wanted} runs in namespace {}",
                cluster.namespace
            )));
        }
    }
    found.retain(|object| {
        let has_started = object.status.as_ref().is_some_and(|status| status.started_at.is_some());
        has_started && (args.names.is_empty() || args.names.contains(&name(object)))
    });
    if found.len() > MAX_PROCESSES {
        complain(&format!("the first {MAX_PROCESSES} of {} processes", found.len()));
        found.truncate(MAX_PROCESSES);
    }
    Ok(found)
}

/// Millicores and bytes of the program's container, by namespace and name of the pod.
type Pods = HashMap<(String, String), (Option<u64>, Option<u64>)>;

#[derive(Deserialize)]
struct PodMetricsList {
    items: Vec<PodMetrics>,
}

#[derive(Deserialize)]
struct PodMetrics {
    metadata: kube::core::ObjectMeta,
    containers: Vec<ContainerMetrics>,
}

#[derive(Deserialize)]
struct ContainerMetrics {
    name: String,
    usage: HashMap<String, String>,
}

async fn metrics(cluster: &Cluster, is_everywhere: bool) -> Result<Pods, String> {
    let place = match is_everywhere {
        true => String::new(),
        false => format!("namespaces/{}/", cluster.namespace),
    };
    let label = names::LABEL_UID.replace('/', "%2F");
    let url = format!("/apis/metrics.k8s.io/v1beta1/{place}pods?labelSelector={label}");
    let request = http::Request::get(url)
        .body(Vec::new())
        .map_err(|error| error.to_string())?;
    let found: Result<PodMetricsList, _> = cluster.client.request(request).await;
    found.map(|found| usages(found.items)).map_err(|error| match error {
        kube::Error::Api(status) if status.code == 404 => {
            "this cluster has no metrics API (metrics.k8s.io); install metrics-server".to_owned()
        }
        other => remoteprocess_client::retry::refusal(&other),
    })
}

fn usages(items: Vec<PodMetrics>) -> Pods {
    let mut found = HashMap::new();
    for PodMetrics { metadata, containers } in items {
        let key = (
            metadata.namespace.unwrap_or_default(),
            metadata.name.unwrap_or_default(),
        );
        if let Some(main) = containers.iter().find(|each| each.name == names::CONTAINER_MAIN) {
            let amount = |resource| main.usage.get(resource).and_then(|text| quantity(text));
            let cpu = amount("cpu").map(|cores| (cores * 1000.0).ceil() as u64);
            found.insert(key, (cpu, amount("memory").map(|bytes| bytes as u64)));
        }
    }
    found
}

/// A Kubernetes quantity as a number: `250m`, `12345678n`, `34Mi`, `1e3`.
fn quantity(text: &str) -> Option<f64> {
    let end = text.find(|character: char| !character.is_ascii_digit() && !".+-".contains(character));
    let (number, suffix) = match text.parse::<f64>() {
        Ok(number) => (number, ""),
        Err(_) => (text.get(..end?)?.parse().ok()?, text.get(end?..)?),
    };
    let scale = match suffix {
        "" => 1.0,
        "n" => 1e-9,
        "u" => 1e-6,
        "m" => 1e-3,
        "k" => 1e3,
        "M" => 1e6,
        "G" => 1e9,
        "Ki" => 1024.0,
        "Mi" => 1024.0 * 1024.0,
        "Gi" => 1024.0 * 1024.0 * 1024.0,
        _ => return None,
    };
    let number = number * scale;
    (number >= 0.0).then_some(number)
}

/// Bytes written so far, and in a second, by uid.
type Written = HashMap<String, (u64, Option<u64>)>;

async fn rates(
    cluster: &std::sync::Arc<Cluster>,
    objects: &[RemoteProcess],
    interval: Duration,
) -> Result<Written, String> {
    let channel = Relay::new(cluster.clone())
        .dial()
        .await
        .map_err(|error| error.to_string())?;
    let client = RelayClient::new(channel);
    let first = positions(&client, objects).await?;
    sleep(interval).await;
    let second = positions(&client, objects).await?;
    let rate = |(uid, (bytes, at)): (&String, &(u64, Instant))| {
        let earlier = first
            .get(uid)
            .map(|(earlier, then)| per_second(*earlier, *bytes, *at - *then));
        (uid.clone(), (*bytes, earlier.flatten()))
    };
    Ok(second.iter().map(rate).collect())
}

/// Bytes per second. `None` if another attempt has begun in the meantime, or no time has passed.
fn per_second(earlier: u64, later: u64, time: Duration) -> Option<u64> {
    let bytes = later.checked_sub(earlier)?;
    (!time.is_zero()).then(|| (bytes as f64 / time.as_secs_f64()).round() as u64)
}

/// How much the processes have written, and when that was asked. Those about which the relay does not answer are
/// missing. Fails if it refuses all.
async fn positions(
    client: &RelayClient<Channel>,
    objects: &[RemoteProcess],
) -> Result<HashMap<String, (u64, Instant)>, String> {
    let ask = |object: &RemoteProcess| {
        let metadata = object.metadata.clone();
        let uid = metadata.uid.unwrap_or_default();
        let key = ProcessKey {
            namespace: metadata.namespace.unwrap_or_default(),
            name: metadata.name.unwrap_or_default(),
            uid: uid.clone(),
        };
        let client = client.clone();
        async move { (uid, position(client, key).await) }
    };
    let asked: Vec<_> = objects.iter().map(ask).collect();
    let answers: Vec<_> = futures::stream::iter(asked).buffer_unordered(AT_ONCE).collect().await;
    let mut found = HashMap::new();
    let mut why = None;
    for (uid, answer) in answers {
        match answer {
            Ok(bytes) => _ = found.insert(uid, (bytes, Instant::now())),
            Err(error) => why = Some(error),
        }
    }
    match why {
        Some(why) if found.is_empty() => Err(why),
        _ => Ok(found),
    }
}

/// The bytes of both streams of the current attempt: where its last line ends.
async fn position(mut client: RelayClient<Channel>, process: ProcessKey) -> Result<u64, String> {
    let request = WatchOutputRequest {
        protocol: PROTOCOL,
        process: Some(process),
        tail_lines: Some(0),
        ..WatchOutputRequest::default()
    };
    let asked = async {
        let mut frames = client.watch_output(request).await?.into_inner();
        while let Some(frame) = frames.message().await? {
            if let Some(Frame::Heartbeat(heartbeat)) = frame.frame
                && let Some(offsets) = heartbeat.offsets
            {
                return Ok(offsets.stdout + offsets.stderr);
            }
        }
        Err(tonic::Status::unavailable("the relay does not know the position"))
    };
    match timeout(LIMIT, asked).await {
        Ok(answer) => answer.map_err(|status| remoteprocess_client::retry::cause(&status)),
        Err(_) => Err("the relay does not answer".to_owned()),
    }
}

fn use_of(object: &RemoteProcess, pods: &Pods, written: &Written) -> Use {
    let metadata = &object.metadata;
    let namespace = metadata.namespace.clone().unwrap_or_default();
    let status = object.status.as_ref();
    let attempt = status
        .and_then(RemoteProcessStatus::current_attempt)
        .unwrap_or_default();
    let pod = status.and_then(|status| status.attempt(attempt)?.pod_name.clone());
    let usage = pod.and_then(|pod| pods.get(&(namespace.clone(), pod)));
    let output = metadata.uid.as_ref().and_then(|uid| written.get(uid));
    Use {
        namespace,
        name: metadata.name.clone().unwrap_or_default(),
        attempt,
        cpu_millicores: usage.and_then(|(cpu, _)| *cpu),
        memory_bytes: usage.and_then(|(_, memory)| *memory),
        output_bytes_per_second: output.and_then(|(_, rate)| *rate),
        output_bytes: output.map(|(bytes, _)| *bytes),
    }
}

fn text(uses: &[Use], with_namespace: bool, with_header: bool) -> String {
    let mut rows = Vec::new();
    if with_header {
        let header = [
            "NAMESPACE",
            "NAME",
            "ATTEMPT",
            "CPU(cores)",
            "MEMORY(bytes)",
            "OUTPUT/S",
            "OUTPUT",
        ];
        rows.push(header.map(str::to_owned).to_vec());
    }
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    rows.extend(uses.iter().map(|each| {
        vec![
            each.namespace.clone(),
            each.name.clone(),
            each.attempt.to_string(),
            or_dash(each.cpu_millicores.map(|cpu| format!("{cpu}m"))),
            or_dash(each.memory_bytes.map(|bytes| format!("{}Mi", bytes >> 20))),
            or_dash(each.output_bytes_per_second.map(size)),
            or_dash(each.output_bytes.map(size)),
        ]
    }));
    if !with_namespace {
        for row in &mut rows {
            row.remove(0);
        }
    }
    let mut table = Table::default();
    table.fit(&rows);
    table.lines(&rows)
}

/// A number of bytes with a binary unit and two or three digits.
fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["Ki", "Mi", "Gi", "Ti", "Pi"];
    let mut rest = bytes as f64 / 1024.0;
    if rest < 1.0 {
        return bytes.to_string();
    }
    for unit in UNITS {
        if rest < 10.0 {
            return format!("{rest:.1}{unit}");
        }
        if rest < 1024.0 {
            return format!("{rest:.0}{unit}");
        }
        rest /= 1024.0;
    }
    format!("{rest:.0}Ei")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn quantities_are_those_of_the_metrics_api() {
        for (text, expected) in [
            ("250m", Some(0.25)),
            ("12345678n", Some(0.012_345_678)),
            ("34Mi", Some(34.0 * 1024.0 * 1024.0)),
            ("2", Some(2.0)),
            ("1e3", Some(1000.0)),
            ("", None),
            ("Mi", None),
            ("3Xi", None),
            ("-1", None),
        ] {
            let found = quantity(text);
            let is_equal = match (found, expected) {
                (Some(found), Some(expected)) => (found - expected).abs() < 1e-9,
                (found, expected) => found == expected,
            };
            assert!(is_equal, "{text}: {found:?}");
        }
    }

    #[test]
    fn what_is_not_known_is_a_dash() {
        let object: RemoteProcess = serde_json::from_value(json!({
            "apiVersion": "remoteprocess.dev/v1alpha1", "kind": "RemoteProcess",
            "metadata": {"namespace": "a", "name": "build", "uid": "u-1"},
            "spec": {"image": "i", "command": ["x"]},
            "status": {"attempt": 2, "attempts": [{"number": 2, "podName": "build-7"}]},
        }))
        .unwrap();
        let metrics: PodMetricsList = serde_json::from_value(json!({"items": [{
            "metadata": {"namespace": "a", "name": "build-7"},
            "containers": [
                {"name": "rproc-agent", "usage": {"cpu": "9", "memory": "9Gi"}},
                {"name": "main", "usage": {"cpu": "1500001n", "memory": "34816Ki"}},
            ],
        }]}))
        .unwrap();
        let written = HashMap::from([("u-1".to_owned(), (3 << 20, Some(1500)))]);
        let known = use_of(&object, &usages(metrics.items), &written);
        let unknown = use_of(&object, &HashMap::new(), &HashMap::new());
        insta::assert_snapshot!(text(&[known, unknown], false, true), @r"
        NAME    ATTEMPT   CPU(cores)   MEMORY(bytes)   OUTPUT/S   OUTPUT
        build   2         2m           34Mi            1.5Ki      3.0Mi
        build   2         -            -               -          -
        ");
    }

    #[test]
    fn a_rate_is_the_difference_over_the_time() {
        assert_eq!(per_second(1000, 5000, Duration::from_secs(2)), Some(2000));
        assert_eq!(per_second(5000, 10, Duration::from_secs(2)), None, "another attempt");
        assert_eq!(per_second(1, 2, Duration::ZERO), None);
        assert_eq!([size(1023), size(10_240), size(5 << 40)], ["1023", "10Ki", "5.0Ti"]);
    }
}
