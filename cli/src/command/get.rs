//! `rproc get`, `rproc ps`: a table of processes.

use clap::ValueEnum;
use futures::StreamExt;
use jiff::Timestamp;
use kube::Api;
use kube::api::{ListParams, WatchParams};
use kube::core::{DynamicObject, WatchEvent};

use super::selection::Failures;
use super::{DataFormat, Failure, open, print, resource, stop};
use crate::args::{GlobalArgs, process_name};
use crate::connect::{Cluster, Rule};
use crate::follow::Backoff;
use crate::render::{Table, row::Columns};

/// Flags of `get`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct GetArgs {
    /// Names of the processes; all where absent
    #[arg(value_parser = process_name)]
    pub names: Vec<String>,
    /// In all namespaces
    #[arg(short = 'A', long, conflicts_with = "names")]
    pub all_namespaces: bool,
    /// Only those with these labels: app=web,tier!=test
    #[arg(short = 'l', long, conflicts_with = "names")]
    pub selector: Option<String>,
    /// Only those with these fields: status.phase=Running, status.reason!=Completed
    #[arg(long, value_name = "SELECTOR", conflicts_with = "names")]
    pub field_selector: Option<String>,
    /// Print each change, too, until Ctrl-C
    #[arg(short, long)]
    pub watch: bool,
    /// Format
    #[arg(short, long, value_enum)]
    pub output: Option<Format>,
    /// Keep metadata.managedFields in JSON and YAML
    #[arg(long)]
    pub show_managed_fields: bool,
    /// Leave out the line with the names of the columns
    #[arg(long)]
    pub no_headers: bool,
    /// Print names only, one on each line, for a script
    #[arg(short, long, conflicts_with = "output")]
    pub quiet: bool,
}

const EXAMPLES: &str = "Examples:
  # All processes of the namespace
  rproc get

  # Of all namespaces, with attempt, start, node and command, and each change
  rproc get -A -o wide -w

  # Those that run
  rproc get --field-selector status.phase=Running

  # One, as YAML
  rproc get build -o yaml";

/// How processes are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// A table with attempt, start, node and command
    Wide,
    /// Names only
    Name,
    /// JSON
    Json,
    /// YAML
    Yaml,
}

/// Prints the processes, oldest first; named ones in the order in which they are named.
///
/// # Errors
/// They may not be listed; or says which of the named ones are not there or may not be read, below the others.
pub async fn run(global: &GlobalArgs, args: GetArgs) -> Result<u8, Failure> {
    let cluster = open(global).await?;
    let api = cluster.objects(args.all_namespaces);
    let columns = Columns {
        namespace: args.all_namespaces,
        wide: args.output == Some(Format::Wide),
    };
    let mut printer = Printer {
        format: args.output,
        is_quiet: args.quiet,
        columns,
        table: Table::default(),
        has_header: args.no_headers,
    };
    if args.watch {
        // What comes later stands in line with what is there now.
        printer.table.fit(&[columns.widest()]);
    }
    let mut failures = Failures::default();
    let (mut objects, version) = read(&cluster, &api, &args, &mut failures).await?;
    let is_table = matches!(args.output, None | Some(Format::Wide)) && !args.quiet;
    if objects.is_empty() && args.names.is_empty() && !args.watch && is_table {
        let place = if args.all_namespaces {
            String::new()
        } else {
            format!(" in namespace {}", cluster.namespace)
        };
        crate::output::complain(&format!("no processes found{place}"));
        return Ok(0);
    }
    if !args.show_managed_fields {
        objects
            .iter_mut()
            .for_each(|object| object.metadata.managed_fields = None);
    }
    if !objects.is_empty() || args.names.is_empty() {
        printer.print_all(&objects, args.names.len() == 1)?;
    }
    // Of the others there is nothing to watch.
    if args.watch && (!objects.is_empty() || args.names.is_empty()) {
        watch(&cluster, &api, &args, printer, version).await?;
    }
    failures.conclude()
}

async fn one(cluster: &Cluster, api: &Api<DynamicObject>, name: &str) -> Result<DynamicObject, Failure> {
    let found = api.get_opt(name).await;
    let rule = Rule::process("get", "remoteprocess-view");
    let found = found.map_err(|error| cluster.error(&error, &rule, &format!("read {name}")))?;
    found.ok_or_else(|| stop::missing(cluster, name))
}

/// Oldest first; those of one moment by name.
fn sort(objects: &mut [DynamicObject]) {
    objects.sort_by_cached_key(|object| {
        let metadata = &object.metadata;
        let created = metadata.creation_timestamp.as_ref().map(|time| time.0);
        (created, metadata.namespace.clone(), metadata.name.clone())
    });
}

async fn read(
    cluster: &Cluster,
    api: &Api<DynamicObject>,
    args: &GetArgs,
    failures: &mut Failures,
) -> Result<(Vec<DynamicObject>, String), Failure> {
    if args.names.is_empty() {
        let params = ListParams {
            label_selector: args.selector.clone(),
            field_selector: args.field_selector.clone(),
            ..ListParams::default()
        };
        let list = api.list(&params).await;
        let rule = Rule::process("list", "remoteprocess-view");
        let mut list = list.map_err(|error| cluster.error(&error, &rule, "list the processes"))?;
        sort(&mut list.items);
        return Ok((list.items, list.metadata.resource_version.unwrap_or_default()));
    }
    let mut objects = Vec::new();
    for name in &args.names {
        objects.extend(failures.keep(one(cluster, api, name).await)?);
    }
    let versions = objects
        .iter()
        .filter_map(|object| object.metadata.resource_version.as_ref()?.parse::<u64>().ok());
    let version = versions.max().map(|version| version.to_string()).unwrap_or_default();
    Ok((objects, version))
}

/// Prints changes until Ctrl-C. An interrupted watch goes on from the last version that was seen.
async fn watch(
    cluster: &Cluster,
    api: &Api<DynamicObject>,
    args: &GetArgs,
    mut printer: Printer,
    mut version: String,
) -> Result<(), Failure> {
    let params = WatchParams {
        label_selector: args.selector.clone(),
        field_selector: args.field_selector.clone(),
        ..WatchParams::default()
    };
    let mut backoff = Backoff::default();
    loop {
        match api.watch(&params, &version).await {
            Ok(events) => {
                let mut events = std::pin::pin!(events);
                while let Some(Ok(event)) = events.next().await {
                    backoff = Backoff::default();
                    match event {
                        WatchEvent::Added(mut object)
                        | WatchEvent::Modified(mut object)
                        | WatchEvent::Deleted(mut object) => {
                            object.metadata.managed_fields.take_if(|_| !args.show_managed_fields);
                            version = object.metadata.resource_version.clone().unwrap_or(version);
                            let name = object.metadata.name.clone().unwrap_or_default();
                            if args.names.is_empty() || args.names.contains(&name) {
                                printer.print_one(&object)?;
                            }
                        }
                        WatchEvent::Bookmark(bookmark) => version = bookmark.metadata.resource_version,
                        // The version is too old: begin with what is there now.
                        WatchEvent::Error(_) => version = read(cluster, api, args, &mut Failures::default()).await?.1,
                    }
                }
            }
            Err(kube::Error::Api(status)) if status.code == 410 => {
                version = read(cluster, api, args, &mut Failures::default()).await?.1
            }
            Err(error @ kube::Error::Api(_)) => {
                let rule = Rule::process("watch", "remoteprocess-view");
                return Err(cluster.error(&error, &rule, "watch the processes").into());
            }
            Err(_) => {}
        }
        tokio::time::sleep(backoff.wait()).await;
    }
}

struct Printer {
    format: Option<Format>,
    /// Names only.
    is_quiet: bool,
    columns: Columns,
    table: Table,
    has_header: bool,
}

impl Printer {
    fn print_all(&mut self, objects: &[DynamicObject], is_single: bool) -> Result<(), Failure> {
        let format = match self.format {
            Some(Format::Json) => DataFormat::Json,
            Some(Format::Yaml) => DataFormat::Yaml,
            _ if self.is_quiet => return objects.iter().try_for_each(|object| self.print_one(object)),
            Some(Format::Name) => return objects.iter().try_for_each(|object| self.print_one(object)),
            None | Some(Format::Wide) => return self.rows(objects),
        };
        match objects {
            [object] if is_single => format.print(object),
            objects => format.print(&serde_json::json!({"apiVersion": "v1", "kind": "List", "items": objects})),
        }
    }

    fn print_one(&mut self, object: &DynamicObject) -> Result<(), Failure> {
        let name = object.metadata.name.as_deref().unwrap_or_default();
        match self.format {
            _ if self.is_quiet => print(&format!("{name}\n")),
            Some(Format::Json) => DataFormat::Json.print(object),
            Some(Format::Yaml) => {
                print("---\n")?;
                DataFormat::Yaml.print(object)
            }
            Some(Format::Name) => print(&format!("{}\n", resource(name))),
            None | Some(Format::Wide) => self.rows(std::slice::from_ref(object)),
        }
    }

    fn rows(&mut self, objects: &[DynamicObject]) -> Result<(), Failure> {
        let now = Timestamp::now();
        let header = (!std::mem::replace(&mut self.has_header, true)).then(|| self.columns.header());
        let rows: Vec<_> = header
            .into_iter()
            .chain(objects.iter().map(|object| self.columns.row(object, now)))
            .collect();
        self.table.fit(&rows);
        print(&self.table.lines(&rows))
    }
}
