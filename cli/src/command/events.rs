//! `rproc events`: the Events of processes and of their pods.

use clap::ValueEnum;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Event;
use kube::api::{ListParams, WatchParams};
use kube::{Api, ResourceExt};
use remoteprocess_client::{Cluster, Rule};
use serde_json::json;
use strum::Display;

use super::changes;
use crate::args::{GlobalArgs, process_name};
use crate::failure::Failure;
use crate::output::complain;
use crate::print::{DataFormat, print};
use crate::render::{Table, last_seen, since};

/// Events in one answer of the API server.
const PAGE: u32 = 500;

/// Flags of `events`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct EventsArgs {
    /// Names of the processes; default: all
    #[arg(value_parser = process_name, value_name = "NAME")]
    pub names: Vec<String>,
    /// Across all namespaces
    #[arg(short = 'A', long, conflicts_with = "names")]
    pub all_namespaces: bool,
    /// List only Events of these types
    #[arg(long, value_enum, value_delimiter = ',', value_name = "TYPE")]
    pub types: Vec<EventType>,
    /// After the list, print each new Event until you press Ctrl-C
    #[arg(short, long)]
    pub watch: bool,
    /// Format
    #[arg(short, long, value_enum)]
    pub output: Option<DataFormat>,
    /// Print no header line
    #[arg(long)]
    pub no_headers: bool,
}

const EXAMPLES: &str = "Kubernetes keeps Events for an hour, unless your cluster is set otherwise.

Examples:
  # What happened to a process and to its pods, oldest first
  rproc events build

  # Warnings of all processes of the namespace, and each new one
  rproc events --types Warning -w";

/// The types of Events, as in the Event API.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Display)]
pub enum EventType {
    /// As expected
    #[value(name = "Normal", alias = "normal")]
    Normal,
    /// Look at it
    #[value(name = "Warning", alias = "warning")]
    Warning,
}

/// Prints the Events, oldest first.
///
/// # Errors
/// They may not be listed.
pub async fn run(global: &GlobalArgs, args: EventsArgs) -> Result<u8, Failure> {
    let cluster = global.open().await?;
    let api: Api<Event> = match args.all_namespaces {
        true => Api::all(cluster.client.clone()),
        false => Api::namespaced(cluster.client.clone(), &cluster.namespace),
    };
    let (mut events, version) = list(&cluster, &api, &args).await?;
    events.sort_by_key(last_seen);
    if events.is_empty() && !args.watch && args.output.is_none() {
        complain(&nothing(&cluster, &args));
        return Ok(0);
    }
    let mut printer = Printer {
        with_namespace: args.all_namespaces,
        table: Table::default(),
        has_header: args.no_headers,
    };
    match args.output {
        None => printer.rows(&events)?,
        Some(format) => format.print(&json!({"apiVersion": "v1", "kind": "List", "items": events}))?,
    }
    if args.watch {
        let latest = async || Ok(list(&cluster, &api, &args).await?.1);
        let refused = |error: &kube::Error| {
            cluster
                .error(error, &Rule::view("events", "watch"), "watch Events")
                .into()
        };
        changes::watch(&api, &WatchParams::default(), version, latest, refused, |event| match (
            args.wants(&event),
            args.output,
        ) {
            (false, _) => Ok(()),
            (true, Some(format)) => format.print(&event),
            (true, None) => printer.rows(&[event]),
        })
        .await?;
    }
    Ok(0)
}

/// The Events that are wanted, and the version of the list.
async fn list(cluster: &Cluster, api: &Api<Event>, args: &EventsArgs) -> Result<(Vec<Event>, String), Failure> {
    let mut params = ListParams::default().limit(PAGE);
    let mut wanted = Vec::new();
    loop {
        let page = api.list(&params).await;
        let page = page.map_err(|error| cluster.error(&error, &Rule::view("events", "list"), "list Events"))?;
        wanted.extend(page.items.into_iter().filter(|event| args.wants(event)));
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params.continue_token = Some(token),
            None => return Ok((wanted, page.metadata.resource_version.unwrap_or_default())),
        }
    }
}

fn nothing(cluster: &Cluster, args: &EventsArgs) -> String {
    let of = match args.names.is_empty() {
        true => String::new(),
        false => format!(" of {}", args.names.join(", ")),
    };
    match args.all_namespaces {
        true => "no Events found".to_owned(),
        false => format!("no Events{of} found in namespace {}", cluster.namespace),
    }
}

impl EventsArgs {
    fn wants(&self, event: &Event) -> bool {
        let is_type = |wanted: &EventType| event.type_.as_ref().is_some_and(|found| *found == wanted.to_string());
        let is_named = |process: &str| self.names.is_empty() || self.names.iter().any(|name| name == process);
        (self.types.is_empty() || self.types.iter().any(is_type)) && process(event).is_some_and(is_named)
    }
}

/// The process that an Event concerns. The pod of an attempt has its name, a hyphen and eight hexadecimal digits.
fn process(event: &Event) -> Option<&str> {
    let name = event.involved_object.name.as_deref()?;
    match event.involved_object.kind.as_deref()? {
        "RemoteProcess" => Some(name),
        "Pod" => {
            let (process, digits) = name.rsplit_once('-')?;
            let is_digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
            (digits.len() == 8 && digits.bytes().all(is_digit)).then_some(process)
        }
        _ => None,
    }
}

struct Printer {
    with_namespace: bool,
    table: Table,
    has_header: bool,
}

impl Printer {
    fn rows(&mut self, events: &[Event]) -> Result<(), Failure> {
        let header = ["LAST SEEN", "TYPE", "REASON", "OBJECT", "MESSAGE"].map(str::to_owned);
        let header = self.row("NAMESPACE".to_owned(), header);
        let header = (!std::mem::replace(&mut self.has_header, true)).then_some(header);
        let now = Timestamp::now();
        let rows = events
            .iter()
            .map(|event| self.row(event.namespace().unwrap_or_default(), cells(event, now)));
        let rows: Vec<_> = header.into_iter().chain(rows).collect();
        self.table.fit(&rows);
        print(&self.table.lines(&rows))
    }

    fn row(&self, namespace: String, cells: [String; 5]) -> Vec<String> {
        let namespace = self.with_namespace.then_some(namespace);
        namespace.into_iter().chain(cells).collect()
    }
}

fn cells(event: &Event, now: Timestamp) -> [String; 5] {
    let object = &event.involved_object;
    let kind = object.kind.as_deref().unwrap_or_default().to_lowercase();
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    [
        since(last_seen(event), now),
        text(&event.type_),
        text(&event.reason),
        format!("{kind}/{}", text(&object.name)),
        text(&event.message),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(kind: &str, name: &str, type_: &str) -> Event {
        serde_json::from_value(json!({
            "metadata": {"name": "e", "namespace": "default"},
            "involvedObject": {"kind": kind, "name": name},
            "type": type_, "reason": "Started", "message": "it\nruns",
            "eventTime": "2026-01-01T00:00:00.000000Z",
            "series": {"count": 2, "lastObservedTime": "2026-01-01T00:00:05.000000Z"},
        }))
        .unwrap()
    }

    fn args(names: &[&str], types: &[EventType]) -> EventsArgs {
        EventsArgs {
            names: names.iter().map(|name| (*name).to_owned()).collect(),
            all_namespaces: false,
            types: types.to_vec(),
            watch: false,
            output: None,
            no_headers: false,
        }
    }

    #[test]
    fn events_of_a_process_and_of_its_pods_are_listed_and_of_nothing_else() {
        let of_job = args(&["job"], &[]);
        for (kind, name, expected) in [
            ("RemoteProcess", "job", true),
            ("Pod", "job-0a1b2c3d", true),
            ("RemoteProcess", "job-2", false),
            ("Pod", "job-2-0a1b2c3d", false),
            ("Pod", "job-0a1b2", false),
            ("Pod", "job-0A1B2C3D", false),
            ("Pod", "job", false),
            ("Job", "job", false),
        ] {
            assert_eq!(of_job.wants(&event(kind, name, "Normal")), expected, "{kind} {name}");
        }
        assert!(args(&[], &[]).wants(&event("RemoteProcess", "any", "Normal")));
        assert!(!args(&[], &[EventType::Warning]).wants(&event("RemoteProcess", "any", "Normal")));
        assert!(args(&[], &[EventType::Warning]).wants(&event("RemoteProcess", "any", "Warning")));
    }

    #[test]
    fn a_row_has_the_last_time_and_names_the_object_as_kubectl_does() {
        let now = "2026-01-01T00:01:00Z".parse().unwrap();
        let expected = ["55s", "Normal", "Started", "pod/job-0a1b2c3d", "it\nruns"];
        assert_eq!(cells(&event("Pod", "job-0a1b2c3d", "Normal"), now), expected);
    }
}
