//! The flags that all commands share, and parsers for the values of flags.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::builder::{OsStringValueParser, TypedValueParser};
use jiff::{SignedDuration, Span};
use remoteprocess_api::signal::{self, SIGNALS};
use remoteprocess_api::{identifier, names};
use remoteprocess_client::cluster::namespace_name;
use remoteprocess_client::{Cluster, ClusterOptions};

use crate::failure::Failure;
use crate::output::complain;

/// The name of a process on the command line: `job`, or in the printed form `remoteprocess.remoteprocess.dev/job`.
///
/// A name becomes part of a path, so only valid Kubernetes names are accepted: `#`, `?`, `%` and `/` would make it
/// another request.
pub fn process_name(text: &str) -> Result<String, String> {
    name_of(text, "process", &["remoteprocess", "remoteprocesses", "rproc"])
}

/// The name of a trigger on the command line: `orders`, or in the printed form `processtrigger.remoteprocess.dev/orders`.
pub fn trigger_name(text: &str) -> Result<String, String> {
    name_of(text, "trigger", &["processtrigger", "processtriggers", "ptrig"])
}

/// The name of a sink on the command line: `events`, or in the printed form `processsink.remoteprocess.dev/events`.
pub fn sink_name(text: &str) -> Result<String, String> {
    name_of(text, "sink", &["processsink", "processsinks", "psink"])
}

/// The name of an object that is one of ours: with or without one of the names of its type, the singular first.
fn name_of(text: &str, what: &str, kinds: &[&str]) -> Result<String, String> {
    let name = match text.split_once('/') {
        None => text,
        Some((kind, name)) => {
            let (kind, group) = kind.split_once('.').unwrap_or((kind, names::GROUP));
            if !kinds.contains(&kind) || group != names::GROUP {
                let singular = kinds.first().copied().unwrap_or_default();
                return Err(format!(
                    "{kind:?} is not the type of a {what}: use NAME or {singular}/NAME"
                ));
            }
            name
        }
    };
    if !identifier::is_name(name) {
        return Err(format!(
            "no {what} can have this name: a name has lowercase letters, digits, '-' and '.', begins and ends \
             with a letter or a digit, and is at most 253 bytes long"
        ));
    }
    Ok(name.to_owned())
}

/// The name of another object on the command line, for example of a ServiceAccount.
pub fn object_name(text: &str) -> Result<String, String> {
    match identifier::is_name(text) {
        true => Ok(text.to_owned()),
        false => Err("no object can have this name".to_owned()),
    }
}

/// The uid of an object on the command line. An empty one counts as absent.
pub fn uid(text: &str) -> Result<String, String> {
    if text.is_empty() || identifier::is_uid(text) {
        return Ok(text.to_owned());
    }
    Err("no object can have this uid: a uid has letters, digits and '-', and is at most 64 bytes long".to_owned())
}

/// Flags of every verb.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "Global options")]
pub struct GlobalArgs {
    /// Namespace of the process, instead of the context's
    #[arg(short, long, global = true, value_name = "NAME", value_parser = namespace_name)]
    pub namespace: Option<String>,
    /// Context of the kubeconfig, instead of the current one
    #[arg(long, global = true, value_name = "NAME")]
    pub context: Option<String>,
    /// Path of the kubeconfig, instead of KUBECONFIG or ~/.kube/config
    #[arg(long, global = true, value_name = "FILE", value_parser = OsStringValueParser::new().map(PathBuf::from))]
    pub kubeconfig: Option<PathBuf>,
    /// User to impersonate
    #[arg(long = "as", global = true, value_name = "USER")]
    pub impersonate: Option<String>,
    /// Group to impersonate; can be repeated
    #[arg(long = "as-group", global = true, value_name = "GROUP", requires = "impersonate")]
    pub impersonate_groups: Vec<String>,
    /// Address (host:port) of the relay, instead of the published one or a port-forward
    #[arg(
        long,
        global = true,
        value_name = "ADDRESS",
        env = "RPROC_SERVER",
        hide_env_values = true
    )]
    pub server: Option<String>,
    /// Namespace in which the operator is installed
    #[arg(
        long,
        global = true,
        value_name = "NAME",
        env = "RPROC_OPERATOR_NAMESPACE",
        hide_env_values = true,
        default_value = names::DEFAULT_RELEASE_NAMESPACE,
        value_parser = namespace_name
    )]
    pub operator_namespace: String,
    /// File with your settings, instead of ~/.config/rproc/config.yaml
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        env = "RPROC_CONFIG",
        hide_env_values = true,
        value_parser = remoteprocess_settings::path_parser()
    )]
    pub config: Option<PathBuf>,
}

impl GlobalArgs {
    /// Opens the selected cluster.
    pub async fn open(&self) -> Result<Arc<Cluster>, Failure> {
        Ok(Arc::new(Cluster::open(&self.cluster()).await?))
    }

    /// The same options for the library.
    pub fn cluster(&self) -> ClusterOptions {
        ClusterOptions {
            namespace: given(self.namespace.as_deref()),
            context: given(self.context.as_deref()),
            kubeconfig: self.kubeconfig.clone(),
            impersonate: given(self.impersonate.as_deref()),
            impersonate_groups: self.impersonate_groups.clone(),
            server: given(self.server.as_deref()),
            operator_namespace: given(Some(&self.operator_namespace)),
            on_wait: Some(complain),
            is_unattended: false,
        }
    }
}

/// The value of a flag; an empty value counts as absent, as in kubectl.
pub fn given(value: Option<&str>) -> Option<String> {
    value.filter(|value| !value.is_empty()).map(str::to_owned)
}

/// A duration on the command line: `90s`, `5m`, `1h30m`, `1d` (24 hours), or seconds.
pub fn duration(text: &str) -> Result<Duration, String> {
    if let Ok(seconds) = text.parse::<u64>() {
        return Ok(Duration::from_secs(seconds));
    }
    let day = SignedDuration::from_hours(24);
    let span = text.parse::<Span>().map_err(|_| ());
    let span = span.and_then(|span| {
        let days = day.checked_mul(span.get_days()).ok_or(())?;
        // Months and years have no fixed length and are refused.
        let rest = SignedDuration::try_from(span.days(0)).map_err(|_| ())?;
        Duration::try_from(days.checked_add(rest).ok_or(())?).map_err(|_| ())
    });
    span.map_err(|()| "expected a time like 90s, 5m, 1h30m or 1d".to_owned())
}

/// The number of a signal on the command line.
pub fn signal_number(text: &str) -> Result<i32, String> {
    signal::parse(text).ok_or_else(|| {
        let names: Vec<&str> = SIGNALS.iter().map(|(name, _)| &name[3..]).collect();
        format!(
            "no such signal. There are {}, and numbers from 1 to {}",
            names.join(" "),
            signal::MAX_SIGNAL
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_becomes_a_part_of_a_path_and_of_nothing_else() {
        let long = "x".repeat(254);
        let odd = [
            "",
            "#3",
            "?",
            "#",
            "job?",
            "a1?dryRun=All",
            "a/b/c",
            "../x",
            "a%2fb",
            "A",
            "-a",
            "a-",
            "a..b",
            "a b",
            "a\n",
            "pod/x",
            "remoteprocess.other.dev/x",
            "rproc/",
            "rproc/#3",
            "\u{e9}",
            &long,
        ];
        for text in odd {
            assert!(process_name(text).is_err(), "{text:?}");
        }
        for text in [
            "x",
            "remoteprocess/x",
            "remoteprocesses/x",
            "rproc/x",
            "remoteprocess.remoteprocess.dev/x",
            "remoteprocesses.remoteprocess.dev/x",
        ] {
            assert_eq!(process_name(text).as_deref(), Ok("x"), "{text}");
        }
        for text in [
            "x",
            "processtrigger/x",
            "ptrig/x",
            "processtriggers.remoteprocess.dev/x",
        ] {
            assert_eq!(trigger_name(text).as_deref(), Ok("x"), "{text}");
        }
        assert_eq!(sink_name("psink/x").as_deref(), Ok("x"));
        assert!(sink_name("ptrig/x").is_err() && trigger_name("psink/x").is_err());
        assert!(trigger_name("remoteprocess/x").is_err() && process_name("ptrig/x").is_err());
        for text in ["a.b", "a/b", "#", "A"] {
            assert!(namespace_name(text).is_err(), "{text:?}");
        }
        assert!(uid("../x").is_err() && uid("a?b").is_err() && uid("0b6f-1").is_ok());
    }

    #[test]
    fn times_are_read_as_people_write_them() {
        for (text, seconds) in [
            ("90", 90),
            ("90s", 90),
            ("5m", 300),
            ("1h30m", 5400),
            ("1d", 86_400),
            ("2d12h", 216_000),
            ("0", 0),
        ] {
            assert_eq!(duration(text).unwrap().as_secs(), seconds, "{text}");
        }
        for text in ["", "-5s", "-1d", "soon", "1mo", "1y", "999999999999d"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }
}
