//! `rproc get`, `rproc ps`: a table of processes.

use std::cmp::Ordering;
use std::str::FromStr;

use jiff::Timestamp;
use kube::Api;
use kube::api::{ListParams, WatchParams};
use kube::core::DynamicObject;
use remoteprocess_client::{Cluster, Rule};
use serde_json::{Value, json};

use super::selection::Failures;
use super::{changes, selection};
use crate::args::{GlobalArgs, process_name};
use crate::failure::Failure;
use crate::print::{DataFormat, print, resource};
use crate::render::Table;
use crate::render::row::Columns;
use crate::render::template::{Path, Template};

/// Flags of `get`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct GetArgs {
    /// Names of the processes; default: all
    #[arg(value_parser = process_name)]
    pub names: Vec<String>,
    /// Across all namespaces
    #[arg(short = 'A', long, conflicts_with = "names")]
    pub all_namespaces: bool,
    /// List only processes with these labels: app=web,tier!=test
    #[arg(short = 'l', long, conflicts_with = "names")]
    pub selector: Option<String>,
    /// List only processes with these fields: status.phase=Running, status.reason!=Completed
    #[arg(long, value_name = "SELECTOR", conflicts_with = "names")]
    pub field_selector: Option<String>,
    /// After the list, print each change until you press Ctrl-C
    #[arg(short, long)]
    pub watch: bool,
    /// Format: wide, name, json, yaml or jsonpath=TEMPLATE
    #[arg(short, long, value_name = "FORMAT")]
    pub output: Option<Format>,
    /// Sort by this field instead of the age: .status.startedAt
    #[arg(long, value_name = "PATH")]
    pub sort_by: Option<Path>,
    /// Keep metadata.managedFields in JSON and YAML
    #[arg(long)]
    pub show_managed_fields: bool,
    /// Print no header line
    #[arg(long)]
    pub no_headers: bool,
    /// Print only names, one per line
    #[arg(short, long, conflicts_with = "output")]
    pub quiet: bool,
}

const EXAMPLES: &str = "Examples:
  # All processes of the namespace
  rproc get

  # Processes in all namespaces with more columns; print each change
  rproc get -A -o wide -w

  # Running processes
  rproc get --field-selector status.phase=Running

  # One process as YAML
  rproc get build -o yaml

  # One field of one process
  rproc get build -o jsonpath='{.status.exitCode}'";

/// The output format.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Format {
    /// A table with attempt, start, node and command
    Wide,
    /// Names only
    Name,
    /// JSON
    Json,
    /// YAML
    Yaml,
    /// What a template makes of it
    JsonPath(Template),
}

impl FromStr for Format {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some(("jsonpath", template)) => template.parse().map(Self::JsonPath),
            Some(_) => Err("expected wide, name, json, yaml or jsonpath=TEMPLATE".to_owned()),
            None => match text {
                "wide" => Ok(Self::Wide),
                "name" => Ok(Self::Name),
                "json" => Ok(Self::Json),
                "yaml" => Ok(Self::Yaml),
                _ => Err("expected wide, name, json, yaml or jsonpath=TEMPLATE".to_owned()),
            },
        }
    }
}

/// Prints the processes, oldest first; if names are given, in the order of the names.
pub async fn run(global: &GlobalArgs, args: GetArgs) -> Result<u8, Failure> {
    let cluster = global.open().await?;
    let api = cluster.objects(args.all_namespaces);
    let columns = Columns {
        namespace: args.all_namespaces,
        wide: args.output == Some(Format::Wide),
    };
    let mut printer = Printer {
        format: args.output.clone(),
        is_quiet: args.quiet,
        columns,
        table: Table::default(),
        has_header: args.no_headers,
    };
    if args.watch {
        // Later rows use the column widths of the first ones.
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
    // There is nothing to watch of those that failed.
    if args.watch && (!objects.is_empty() || args.names.is_empty()) {
        watch(&cluster, &api, &args, printer, version).await?;
    }
    failures.conclude()
}

async fn one(cluster: &Cluster, api: &Api<DynamicObject>, name: &str) -> Result<DynamicObject, Failure> {
    let found = api.get_opt(name).await;
    let rule = Rule::process("get", "remoteprocess-view");
    let found = found.map_err(|error| cluster.error(&error, &rule, &format!("read {name}")))?;
    found.ok_or_else(|| selection::missing(cluster, name))
}

/// Oldest first, those of the same time by name; or by a field, those without it first.
pub(super) fn sort(objects: &mut [DynamicObject], path: Option<&Path>) {
    objects.sort_by_cached_key(|object| {
        let metadata = &object.metadata;
        let created = metadata.creation_timestamp.as_ref().map(|time| time.0);
        (created, metadata.namespace.clone(), metadata.name.clone())
    });
    let Some(path) = path else { return };
    objects.sort_by_cached_key(|object| {
        let object = serde_json::to_value(object).unwrap_or_default();
        let found = path.find(&object).into_iter().next();
        found
            .filter(|found| !found.is_null())
            .map(|found| Sorted(found.clone()))
    });
}

/// A field for sorting: numbers by value, anything else by its text.
#[derive(PartialEq, Eq)]
struct Sorted(Value);

impl Ord for Sorted {
    fn cmp(&self, other: &Self) -> Ordering {
        match (self.0.as_f64(), other.0.as_f64()) {
            (Some(one), Some(other)) => one.total_cmp(&other),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (None, None) => {
                let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                text(&self.0).cmp(&text(&other.0))
            }
        }
    }
}

impl PartialOrd for Sorted {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
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
        sort(&mut list.items, args.sort_by.as_ref());
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

/// Prints changes until Ctrl-C.
async fn watch(
    cluster: &Cluster,
    api: &Api<DynamicObject>,
    args: &GetArgs,
    mut printer: Printer,
    version: String,
) -> Result<(), Failure> {
    let params = WatchParams {
        label_selector: args.selector.clone(),
        field_selector: args.field_selector.clone(),
        ..WatchParams::default()
    };
    let latest = async || Ok(read(cluster, api, args, &mut Failures::default()).await?.1);
    let rule = Rule::process("watch", "remoteprocess-view");
    let refused = |error: &kube::Error| cluster.error(error, &rule, "watch the processes").into();
    changes::watch(api, &params, version, latest, refused, |mut object: DynamicObject| {
        object.metadata.managed_fields.take_if(|_| !args.show_managed_fields);
        let name = object.metadata.name.clone().unwrap_or_default();
        match args.names.is_empty() || args.names.contains(&name) {
            true => printer.print_one(&object),
            false => Ok(()),
        }
    })
    .await
}

/// One object, or a list of several.
pub(super) fn shown(objects: &[DynamicObject], is_single: bool) -> Result<Value, Failure> {
    let value = match objects {
        [object] if is_single => serde_json::to_value(object),
        objects => {
            serde_json::to_value(objects).map(|items| json!({"apiVersion": "v1", "kind": "List", "items": items}))
        }
    };
    value.map_err(|error| Failure::new(error.to_string()))
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
        let format = match &self.format {
            Some(Format::Json) => DataFormat::Json,
            Some(Format::Yaml) => DataFormat::Yaml,
            _ if self.is_quiet => return objects.iter().try_for_each(|object| self.print_one(object)),
            Some(Format::JsonPath(template)) => return print(&template.fill(&shown(objects, is_single)?)),
            Some(Format::Name) => return objects.iter().try_for_each(|object| self.print_one(object)),
            None | Some(Format::Wide) => return self.rows(objects),
        };
        format.print(&shown(objects, is_single)?)
    }

    fn print_one(&mut self, object: &DynamicObject) -> Result<(), Failure> {
        let name = object.metadata.name.as_deref().unwrap_or_default();
        match &self.format {
            _ if self.is_quiet => print(&format!("{name}\n")),
            Some(Format::JsonPath(template)) => {
                let text = template.fill(&shown(std::slice::from_ref(object), true)?);
                print(&format!("{text}\n"))
            }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_are_sorted_by_age_or_by_a_field() {
        let object = |name: &str, created: u32, code: Value| -> DynamicObject {
            serde_json::from_value(json!({
                "metadata": {"name": name, "creationTimestamp": format!("2026-01-01T00:00:0{created}Z")},
                "status": {"exitCode": code},
            }))
            .unwrap()
        };
        let mut objects = vec![
            object("late", 3, json!(7)),
            object("b", 1, json!(10)),
            object("a", 1, Value::Null),
        ];
        let names = |objects: &[DynamicObject]| -> Vec<String> {
            objects
                .iter()
                .filter_map(|object| object.metadata.name.clone())
                .collect()
        };
        sort(&mut objects, None);
        assert_eq!(names(&objects), ["a", "b", "late"]);
        sort(&mut objects, Some(&".status.exitCode".parse().unwrap()));
        assert_eq!(names(&objects), ["a", "late", "b"], "7 before 10");
    }

    #[test]
    fn formats_are_those_of_kubectl() {
        assert_eq!("yaml".parse(), Ok(Format::Yaml));
        assert!("jsonpath={.a}".parse::<Format>().is_ok());
        for wrong in ["", "xml", "jsonpath", "jsonpath={", "wide=x"] {
            assert!(wrong.parse::<Format>().is_err(), "{wrong}");
        }
    }
}
