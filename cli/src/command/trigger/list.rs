//! `rproc trigger ls`: a table of triggers.

use jiff::Timestamp;
use kube::api::ListParams;
use kube::core::DynamicObject;
use remoteprocess_client::{Cluster, Rule};

use super::super::get::{Format, shown, sort};
use super::super::selection::Failures;
use super::{found, objects};
use crate::args::{GlobalArgs, trigger_name};
use crate::failure::Failure;
use crate::output::complain;
use crate::print::{DataFormat, print, trigger};
use crate::render::Table;
use crate::render::trigger::Columns;

/// Flags of `trigger ls`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct ListArgs {
    /// Names of the triggers; default: all
    #[arg(value_parser = trigger_name, value_name = "NAME")]
    names: Vec<String>,
    /// Across all namespaces
    #[arg(short = 'A', long, conflicts_with = "names")]
    all_namespaces: bool,
    /// List only triggers with these labels: app=web,tier!=test
    #[arg(short = 'l', long, conflicts_with = "names")]
    selector: Option<String>,
    /// Format: wide, name, json, yaml or jsonpath=TEMPLATE
    #[arg(short, long, value_name = "FORMAT")]
    output: Option<Format>,
    /// Print no header line
    #[arg(long)]
    no_headers: bool,
}

const EXAMPLES: &str = "Examples:
  # All triggers of the namespace
  rproc trigger ls

  # All triggers, with dead letters and the reason of the condition Ready
  rproc trigger ls -A -o wide";

/// Prints the triggers, oldest first; if names are given, in the order of the names.
pub(super) async fn run(global: &GlobalArgs, args: ListArgs) -> Result<u8, Failure> {
    let cluster = global.open().await?;
    let mut failures = Failures::default();
    let mut objects = read(&cluster, &args, &mut failures).await?;
    objects
        .iter_mut()
        .for_each(|object| object.metadata.managed_fields = None);
    let is_table = matches!(args.output, None | Some(Format::Wide));
    if objects.is_empty() && is_table {
        if args.names.is_empty() {
            let place = match args.all_namespaces {
                true => String::new(),
                false => format!(" in namespace {}", cluster.namespace),
            };
            complain(&format!("no triggers found{place}"));
        }
    } else {
        print_all(&args, &objects)?;
    }
    failures.conclude()
}

async fn read(cluster: &Cluster, args: &ListArgs, failures: &mut Failures) -> Result<Vec<DynamicObject>, Failure> {
    let api = objects(cluster, args.all_namespaces);
    if args.names.is_empty() {
        let params = ListParams {
            label_selector: args.selector.clone(),
            ..ListParams::default()
        };
        let rule = Rule::trigger("list", "remoteprocess-view");
        let list = api.list(&params).await;
        let mut list = list.map_err(|error| cluster.error(&error, &rule, "list the triggers"))?;
        sort(&mut list.items, None);
        return Ok(list.items);
    }
    let mut objects = Vec::new();
    for name in &args.names {
        objects.extend(failures.keep(found(cluster, name, api.get_opt(name).await))?);
    }
    Ok(objects)
}

fn print_all(args: &ListArgs, objects: &[DynamicObject]) -> Result<(), Failure> {
    let is_single = args.names.len() == 1;
    match &args.output {
        Some(Format::Json) => DataFormat::Json.print(&shown(objects, is_single)?),
        Some(Format::Yaml) => DataFormat::Yaml.print(&shown(objects, is_single)?),
        Some(Format::JsonPath(template)) => print(&template.fill(&shown(objects, is_single)?)),
        Some(Format::Name) => objects.iter().try_for_each(|object| {
            let name = object.metadata.name.as_deref().unwrap_or_default();
            print(&format!("{}\n", trigger(name)))
        }),
        None | Some(Format::Wide) => {
            let columns = Columns {
                namespace: args.all_namespaces,
                wide: args.output.is_some(),
            };
            let now = Timestamp::now();
            let header = (!args.no_headers).then(|| columns.header());
            let rows = header
                .into_iter()
                .chain(objects.iter().map(|object| columns.row(object, now)));
            let rows: Vec<_> = rows.collect();
            let mut table = Table::default();
            table.fit(&rows);
            print(&table.lines(&rows))
        }
    }
}
