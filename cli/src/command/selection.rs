//! Selects processes for a command, and collects failures: one that fails does not stop the others.

use kube::api::ListParams;
use remoteprocess_api::RemoteProcess;
use remoteprocess_client::{Cluster, Rule};

use crate::args::process_name;
use crate::exit;
use crate::failure::Failure;
use crate::output::complain;

/// Flags that select existing processes.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(group = clap::ArgGroup::new("processes").required(true).multiple(true))]
pub struct Selection {
    /// Names of the processes
    #[arg(value_parser = process_name, group = "processes", value_name = "NAME",
          conflicts_with_all = ["selector", "field_selector", "all"])]
    pub names: Vec<String>,
    /// Select processes with these labels: app=web,tier!=test
    #[arg(short = 'l', long, group = "processes", value_parser = selector, conflicts_with = "all")]
    pub selector: Option<String>,
    /// Select processes with these fields: status.phase=Running, status.reason!=Completed, metadata.name=build
    #[arg(long, group = "processes", value_name = "SELECTOR", value_parser = selector, conflicts_with = "all")]
    pub field_selector: Option<String>,
    /// All processes of the namespace
    #[arg(long, group = "processes")]
    pub all: bool,
}

/// An empty selector selects everything, and an unset variable must not mean that.
fn selector(text: &str) -> Result<String, String> {
    match text.trim() {
        "" => Err("it selects nothing; use --all for all processes of the namespace".to_owned()),
        text => Ok(text.to_owned()),
    }
}

impl Selection {
    /// Whether each of them was named: then each must exist.
    pub fn is_named(&self) -> bool {
        !self.names.is_empty()
    }

    /// The names of the processes. If none is selected, prints so.
    pub async fn names(&self, cluster: &Cluster) -> Result<Vec<String>, Failure> {
        if self.is_named() {
            return Ok(self.names.clone());
        }
        let params = ListParams {
            label_selector: self.selector.clone(),
            field_selector: self.field_selector.clone(),
            ..ListParams::default()
        };
        let list = cluster.objects(false).list_metadata(&params).await;
        let rule = Rule::process("list", "remoteprocess-view");
        let list = list.map_err(|error| cluster.error(&error, &rule, "list the processes"))?;
        let names: Vec<_> = list
            .items
            .into_iter()
            .filter_map(|object| object.metadata.name)
            .collect();
        if names.is_empty() {
            complain(&format!("no processes found in namespace {}", cluster.namespace));
        }
        Ok(names)
    }

    /// Reads the processes; reports each that cannot be read.
    ///
    /// # Errors
    /// As [`Selection::names`].
    pub async fn objects(&self, cluster: &Cluster, failures: &mut Failures) -> Result<Vec<RemoteProcess>, Failure> {
        let mut objects = Vec::new();
        for name in self.names(cluster).await? {
            objects.extend(failures.keep(get(cluster, &name).await)?);
        }
        Ok(objects)
    }
}

/// The failures of a command on several processes, which are reported at the end.
#[derive(Debug, Default)]
pub struct Failures(Vec<String>);

impl Failures {
    /// The value, or `None` if it failed.
    pub fn keep<T>(&mut self, result: Result<T, Failure>) -> Result<Option<T>, Failure> {
        match result {
            Ok(value) => Ok(Some(value)),
            Err(failure) if failure.code == exit::PIPE => Err(failure),
            Err(failure) => {
                self.0.push(failure.text);
                Ok(None)
            }
        }
    }

    /// Ends the command.
    pub fn conclude(self) -> Result<u8, Failure> {
        if self.0.is_empty() {
            return Ok(0);
        }
        Err(Failure::no(self.0.join("\n")))
    }
}

/// Reads one process.
pub async fn get(cluster: &Cluster, name: &str) -> Result<RemoteProcess, Failure> {
    let found = cluster
        .processes()
        .get_opt(name)
        .await
        .map_err(|error| cluster.error(&error, &Rule::process("get", "remoteprocess-view"), "read the process"))?;
    found.ok_or_else(|| missing(cluster, name))
}

/// The failure for a process that does not exist.
pub fn missing(cluster: &Cluster, name: &str) -> Failure {
    Failure::new(format!("there is no process {name} in namespace {}", cluster.namespace))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Only {
        #[command(flatten)]
        selection: Selection,
    }

    #[test]
    fn nothing_given_is_not_everything() {
        let parse = |words: &[&str]| Only::try_parse_from([&["x"], words].concat());
        for wrong in [
            &[][..],
            &["-l", ""],
            &["--selector", " "],
            &["--field-selector", ""],
            &["a", "--all"],
            &["a", "-l", "x=y"],
            &["-l", "x=y", "--all"],
        ] {
            assert!(parse(wrong).is_err(), "{wrong:?}");
        }
        assert_eq!(parse(&["a", "b"]).unwrap().selection.names, ["a", "b"]);
        assert!(parse(&["--all"]).unwrap().selection.all);
        let both = parse(&["-l", "a=b", "--field-selector", "status.phase=Running"]).unwrap();
        assert!(both.selection.selector.is_some() && both.selection.field_selector.is_some());
    }

    #[test]
    fn one_missing_name_of_several_does_not_hide_or_stop_the_rest() {
        let mut failures = Failures::default();
        assert_eq!(failures.keep(Ok(1)).unwrap(), Some(1));
        assert_eq!(failures.keep::<u8>(Err(Failure::new("no b"))).unwrap(), None);
        assert_eq!(failures.keep::<u8>(Err(Failure::no("no c"))).unwrap(), None);
        assert!(failures.keep::<u8>(Err(Failure::closed())).is_err());
        assert_eq!(failures.conclude(), Err(Failure::no("no b\nno c")));
        assert_eq!(Failures::default().conclude(), Ok(0));
    }
}
