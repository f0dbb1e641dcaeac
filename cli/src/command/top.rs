//! `rproc top`: what running processes use and write at the moment.

use std::io::IsTerminal;
use std::time::Duration;

use kube::Api;
use kube::api::ListParams;
use remoteprocess_api::{RemoteProcess, RemoteProcessStatus};
use remoteprocess_client::{Cluster, Rule};
use serde::Serialize;
use tokio::time::sleep;

mod metrics;
mod screen;
mod written;

use crate::args::{GlobalArgs, duration, process_name};
use crate::failure::Failure;
use crate::interact::{DEFAULT_WINDOW, window};
use crate::output::complain;
use crate::print::{DataFormat, print};
use crate::render::Table;
use metrics::{Pods, metrics};
use screen::Screen;
use written::{Rates, Written};

/// Most processes that are shown: each one is two calls to the relay.
const MAX_PROCESSES: usize = 500;
/// Shortest time between two rounds of `--watch`.
const SHORTEST: Duration = Duration::from_millis(500);

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
    /// Show them again and again until you press Ctrl-C: in place at a terminal, otherwise one table after the other
    #[arg(short, long)]
    pub watch: bool,
    /// Time over which the rate of output is measured; with --watch, between two tables, at least 500ms
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
  rproc top -w
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

/// Prints what the running processes use, once or until Ctrl-C.
///
/// # Errors
/// The processes cannot be listed. What else is not known is reported and left out.
pub async fn run(global: &GlobalArgs, args: TopArgs) -> Result<u8, Failure> {
    let cluster = global.open().await?;
    let mut written = Written::new(cluster.clone());
    if args.watch {
        return watch(&cluster, &args, written).await;
    }
    let mut notes = Vec::new();
    let objects = running(&cluster, &args, &mut notes).await?.all()?;
    if objects.is_empty() {
        complain("no process runs");
        return Ok(0);
    }
    let pods = metrics(&cluster, args.all_namespaces).await;
    let rates = match written.ask(&objects).await {
        Ok(_) => {
            sleep(args.interval).await;
            written.ask(&objects).await
        }
        Err(why) => Err(why),
    };
    let uses = uses(&objects, pods, rates, &mut notes);
    Display::new(&args, false).show(&uses, notes)?;
    Ok(0)
}

/// Shows what they use again and again. Once it has begun, it continues without what is not known at the moment.
async fn watch(cluster: &Cluster, args: &TopArgs, mut written: Written) -> Result<u8, Failure> {
    let interval = args.interval.max(SHORTEST);
    let mut display = Display::new(args, std::io::stdout().is_terminal() && args.output.is_none());
    let mut notes = Vec::new();
    let mut objects = running(cluster, args, &mut notes).await?.all()?;
    loop {
        let pods = match objects.is_empty() {
            true => Ok(Pods::new()),
            false => metrics(cluster, args.all_namespaces).await,
        };
        let rates = written.ask(&objects).await;
        let uses = uses(&objects, pods, rates, &mut notes);
        if uses.is_empty() {
            notes.push("no process runs".to_owned());
        }
        display.show(&uses, std::mem::take(&mut notes))?;
        objects = next(cluster, args, interval, &mut notes, &mut display).await?;
    }
}

/// The processes of the next round. Those that a user names may end meanwhile.
async fn next(
    cluster: &Cluster,
    args: &TopArgs,
    interval: Duration,
    notes: &mut Vec<String>,
    display: &mut Display,
) -> Result<Vec<RemoteProcess>, Failure> {
    loop {
        sleep(interval).await;
        match running(cluster, args, notes).await {
            Ok(found) => {
                notes.extend(found.absent.map(|failure| failure.text));
                return Ok(found.objects);
            }
            Err(failure) => display.fail(failure.text)?,
        }
    }
}

/// What is known; what is not known is added to `notes`.
fn uses(
    objects: &[RemoteProcess],
    pods: Result<Pods, String>,
    rates: Result<Rates, String>,
    notes: &mut Vec<String>,
) -> Vec<Use> {
    let pods = pods.unwrap_or_else(|why| {
        notes.push(format!("CPU and memory are not known: {why}"));
        Pods::new()
    });
    let rates = rates.unwrap_or_else(|why| {
        notes.push(format!("the rate of output is not known: {why}"));
        Rates::new()
    });
    objects.iter().map(|object| use_of(object, &pods, &rates)).collect()
}

/// Processes that run.
struct Found {
    objects: Vec<RemoteProcess>,
    /// One that the user names does not run.
    absent: Option<Failure>,
}

impl Found {
    fn all(self) -> Result<Vec<RemoteProcess>, Failure> {
        match self.absent {
            Some(failure) => Err(failure),
            None => Ok(self.objects),
        }
    }
}

/// Lists the processes that run. If there are too many, `notes` says so.
async fn running(cluster: &Cluster, args: &TopArgs, notes: &mut Vec<String>) -> Result<Found, Failure> {
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
    let mut objects = found
        .map_err(|error| cluster.error(&error, &rule, "list the processes"))?
        .items;
    let is = |object: &RemoteProcess, name: &String| object.metadata.name.as_ref() == Some(name);
    let mut names = args.names.iter();
    let absent = names.find(|name| !objects.iter().any(|object| is(object, name)));
    let absent = absent.map(|name| Failure::new(format!("no process {name} runs in namespace {}", cluster.namespace)));
    objects.retain(|object| {
        let has_started = object.status.as_ref().is_some_and(|status| status.started_at.is_some());
        has_started && (args.names.is_empty() || args.names.iter().any(|name| is(object, name)))
    });
    if objects.len() > MAX_PROCESSES {
        notes.push(format!("the first {MAX_PROCESSES} of {} processes", objects.len()));
        objects.truncate(MAX_PROCESSES);
    }
    Ok(Found { objects, absent })
}

fn use_of(object: &RemoteProcess, pods: &Pods, rates: &Rates) -> Use {
    let metadata = &object.metadata;
    let namespace = metadata.namespace.clone().unwrap_or_default();
    let status = object.status.as_ref();
    let attempt = status
        .and_then(RemoteProcessStatus::current_attempt)
        .unwrap_or_default();
    let pod = status.and_then(|status| status.attempt(attempt)?.pod_name.clone());
    let usage = pod.and_then(|pod| pods.get(&(namespace.clone(), pod)));
    let output = metadata.uid.as_ref().and_then(|uid| rates.get(uid));
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

/// Where the tables go.
struct Display {
    format: Option<DataFormat>,
    with_namespace: bool,
    with_header: bool,
    table: Table,
    /// The terminal, if tables replace each other.
    screen: Option<Screen>,
    /// What the screen shows above the notes.
    shown: String,
    /// What was said last.
    notes: Vec<String>,
}

impl Display {
    fn new(args: &TopArgs, is_screen: bool) -> Self {
        Self {
            format: args.output,
            with_namespace: args.all_namespaces,
            with_header: !args.no_headers,
            table: Table::default(),
            screen: is_screen.then(Screen::default),
            shown: String::new(),
            notes: Vec::new(),
        }
    }

    fn show(&mut self, uses: &[Use], notes: Vec<String>) -> Result<(), Failure> {
        let rows = rows(uses, self.with_namespace, self.with_header);
        self.table.fit(&rows);
        let table = self.table.lines(&rows);
        if self.screen.is_some() {
            self.shown = table;
            return self.draw(&notes);
        }
        self.say(notes);
        if let Some(format) = self.format {
            if format == DataFormat::Yaml && !std::mem::replace(&mut self.with_header, false) {
                print("---\n")?;
            }
            return format.print(&uses);
        }
        // Later tables continue the first one.
        self.with_header = false;
        print(&table)
    }

    /// Nothing is known at the moment.
    fn fail(&mut self, why: String) -> Result<(), Failure> {
        match self.screen {
            Some(_) => self.draw(&[why]),
            None => {
                self.say(vec![why]);
                Ok(())
            }
        }
    }

    fn draw(&mut self, notes: &[String]) -> Result<(), Failure> {
        let Some(screen) = &mut self.screen else {
            return Ok(());
        };
        print(&screen.frame(&self.shown, notes, window().unwrap_or(DEFAULT_WINDOW)))
    }

    /// Says what was not said in the last round.
    fn say(&mut self, notes: Vec<String>) {
        let new = notes.iter().filter(|note| !self.notes.contains(note));
        new.for_each(|note| complain(note));
        self.notes = notes;
    }
}

fn rows(uses: &[Use], with_namespace: bool, with_header: bool) -> Vec<Vec<String>> {
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
    rows
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
    fn what_is_not_known_is_a_dash() {
        let object: RemoteProcess = serde_json::from_value(json!({
            "apiVersion": "remoteprocess.dev/v1alpha1", "kind": "RemoteProcess",
            "metadata": {"namespace": "a", "name": "build", "uid": "u-1"},
            "spec": {"image": "i", "command": ["x"]},
            "status": {"attempt": 2, "attempts": [{"number": 2, "podName": "build-7"}]},
        }))
        .unwrap();
        let pods = Pods::from([(("a".to_owned(), "build-7".to_owned()), (Some(2), Some(34 << 20)))]);
        let rates = Rates::from([("u-1".to_owned(), (3 << 20, Some(1500)))]);
        let known = use_of(&object, &pods, &rates);
        let unknown = use_of(&object, &Pods::new(), &Rates::new());
        let rows = rows(&[known, unknown], false, true);
        let mut table = Table::default();
        table.fit(&rows);
        insta::assert_snapshot!(table.lines(&rows), @r"
        NAME    ATTEMPT   CPU(cores)   MEMORY(bytes)   OUTPUT/S   OUTPUT
        build   2         2m           34Mi            1.5Ki      3.0Mi
        build   2         -            -               -          -
        ");
    }

    #[test]
    fn sizes_have_two_or_three_digits() {
        assert_eq!([size(1023), size(10_240), size(5 << 40)], ["1023", "10Ki", "5.0Ti"]);
    }
}
