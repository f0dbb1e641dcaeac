//! `ls`: a table of triggers or sinks.

use jiff::Timestamp;
use kube::api::ListParams;
use kube::core::DynamicObject;
use remoteprocess_client::Cluster;

use super::super::get::{Format, shown, sort};
use super::super::selection::Failures;
use super::{Bridged, ROLE, found, untyped};
use crate::args::GlobalArgs;
use crate::failure::Failure;
use crate::output::complain;
use crate::print::{DataFormat, print, resource_of};
use crate::render::Table;
use crate::render::bridged::Columns;

/// Flags of `ls`, in addition to the names.
#[derive(Debug, clap::Args)]
pub(in crate::command) struct ListFlags {
    /// Across all namespaces
    #[arg(short = 'A', long, conflicts_with = "names")]
    all_namespaces: bool,
    /// List only those with these labels: app=web,tier!=test
    #[arg(short = 'l', long, conflicts_with = "names")]
    selector: Option<String>,
    /// Format: wide, name, json, yaml or jsonpath=TEMPLATE
    #[arg(short, long, value_name = "FORMAT")]
    output: Option<Format>,
    /// Print no header line
    #[arg(long)]
    no_headers: bool,
}

/// Prints the objects, oldest first; if names are given, in the order of the names.
pub(in crate::command) async fn list<K: Bridged>(
    global: &GlobalArgs,
    names: &[String],
    flags: &ListFlags,
) -> Result<u8, Failure> {
    let cluster = global.open().await?;
    let mut failures = Failures::default();
    let mut objects = read::<K>(&cluster, names, flags, &mut failures).await?;
    objects
        .iter_mut()
        .for_each(|object| object.metadata.managed_fields = None);
    let is_table = matches!(flags.output, None | Some(Format::Wide));
    if objects.is_empty() && is_table {
        if names.is_empty() {
            let place = match flags.all_namespaces {
                true => String::new(),
                false => format!(" in namespace {}", cluster.namespace),
            };
            complain(&format!("no {}s found{place}", K::WORD));
        }
    } else {
        print_all::<K>(flags, &objects, names.len() == 1)?;
    }
    failures.conclude()
}

async fn read<K: Bridged>(
    cluster: &Cluster,
    names: &[String],
    flags: &ListFlags,
    failures: &mut Failures,
) -> Result<Vec<DynamicObject>, Failure> {
    let api = untyped::<K>(cluster, flags.all_namespaces);
    if names.is_empty() {
        let params = ListParams {
            label_selector: flags.selector.clone(),
            ..ListParams::default()
        };
        let list = api.list(&params).await;
        let what = format!("list the {}s", K::WORD);
        let mut list = list.map_err(|error| cluster.error(&error, &K::rule("list", ROLE), &what))?;
        sort(&mut list.items, None);
        return Ok(list.items);
    }
    let mut objects = Vec::new();
    for name in names {
        objects.extend(failures.keep(found::<K, _>(cluster, name, api.get_opt(name).await))?);
    }
    Ok(objects)
}

fn print_all<K: Bridged>(flags: &ListFlags, objects: &[DynamicObject], is_single: bool) -> Result<(), Failure> {
    match &flags.output {
        Some(Format::Json) => DataFormat::Json.print(&shown(objects, is_single)?),
        Some(Format::Yaml) => DataFormat::Yaml.print(&shown(objects, is_single)?),
        Some(Format::JsonPath(template)) => print(&template.fill(&shown(objects, is_single)?)),
        Some(Format::Name) => objects.iter().try_for_each(|object| {
            let name = object.metadata.name.as_deref().unwrap_or_default();
            print(&format!("{}\n", resource_of::<K>(name)))
        }),
        None | Some(Format::Wide) => {
            let columns = Columns {
                namespace: flags.all_namespaces,
                wide: flags.output.is_some(),
            };
            let now = Timestamp::now();
            let header = (!flags.no_headers).then(|| columns.header::<K>());
            let rows = header
                .into_iter()
                .chain(objects.iter().map(|object| columns.row::<K>(object, now)));
            let rows: Vec<_> = rows.collect();
            let mut table = Table::default();
            table.fit(&rows);
            print(&table.lines(&rows))
        }
    }
}
