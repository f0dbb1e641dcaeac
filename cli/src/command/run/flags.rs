//! The flags of `run`, and parsers for those that are more than text.

use crate::args::duration;
use crate::args::{object_name, process_name};
use crate::command::launch::{DryRun, ViewArgs};
use clap::ValueEnum;
use k8s_openapi::api::core::v1::{
    ConfigMapEnvSource, ConfigMapVolumeSource, EmptyDirVolumeSource, EnvFromSource, PersistentVolumeClaimVolumeSource,
    SecretEnvSource, SecretVolumeSource, Volume, VolumeMount,
};
use remoteprocess_api::{ConfigMapKey, SecretKey, StdinSource, identifier};
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

/// Flags of `run`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES, override_usage = USAGE)]
pub struct RunArgs {
    /// Name of the process; default: generated from the image
    #[arg(value_parser = process_name)]
    pub name: Option<String>,
    /// Image of the container; its ENTRYPOINT and CMD are not used
    #[arg(long, required_unless_present = "file", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    pub image: Option<String>,
    /// Create the RemoteProcess in this file (YAML or JSON); - for standard input
    #[arg(short, long, value_name = "FILE", conflicts_with_all = ["image", "specification", "command"])]
    pub file: Option<PathBuf>,
    /// Fields of the object.
    #[command(flatten)]
    pub specification: SpecificationArgs,
    /// How it is followed.
    #[command(flatten)]
    pub view: ViewArgs,
    /// Print what would be created; "server" also validates it on the API server
    #[arg(
        long,
        value_name = "WHERE",
        value_enum,
        default_value = "none",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "client"
    )]
    pub dry_run: DryRun,
    /// Delete an existing process of this name first
    #[arg(long)]
    pub replace: bool,
    /// The command and its arguments, run as typed
    #[arg(last = true, required_unless_present = "file", value_name = "COMMAND")]
    pub command: Vec<String>,
}

/// The flags of `run` that set fields of the object.
#[derive(Debug, Default, clap::Args)]
#[group(id = "specification", multiple = true)]
pub struct SpecificationArgs {
    /// When to pull the image
    #[arg(long, value_name = "POLICY", value_parser = ["Always", "IfNotPresent", "Never"])]
    pub image_pull_policy: Option<String>,
    /// Environment variable; without a value, the value in your environment is used. Can be repeated
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    pub env: Vec<OsString>,
    /// File with environment variables, one NAME=VALUE or NAME on each line; # begins a comment
    #[arg(long, value_name = "FILE")]
    pub env_file: Vec<PathBuf>,
    /// Environment variables from each key of a Secret or ConfigMap
    #[arg(long, value_name = "secret/NAME|configmap/NAME", value_parser = env_source)]
    pub env_from: Vec<EnvFromSource>,
    /// Volume: secret/NAME:PATH, configmap/NAME:PATH, pvc/NAME:PATH (add :ro for read-only) or empty:PATH. Can be repeated
    #[arg(long, value_name = "VOLUME", value_parser = volume)]
    pub volume: Vec<Mounted>,
    /// Standard input of the command: a key of a Secret or ConfigMap
    #[arg(
        long,
        value_name = "secret/NAME:KEY|configmap/NAME:KEY",
        value_parser = stdin_source,
        conflicts_with_all = ["stdin", "tty"]
    )]
    pub stdin_from: Option<StdinSource>,
    /// User ID and group ID to run the command as
    #[arg(short, long, value_name = "UID[:GID]", value_parser = user)]
    pub user: Option<Owner>,
    /// ServiceAccount of the pod; the command can read its token
    #[arg(long, value_name = "NAME", value_parser = object_name)]
    pub service_account: Option<String>,
    /// CPU request: 500m, 2
    #[arg(long, value_name = "QUANTITY", value_parser = quantity)]
    pub cpu: Option<String>,
    /// CPU limit
    #[arg(long, value_name = "QUANTITY", value_parser = quantity)]
    pub cpu_limit: Option<String>,
    /// Memory request and limit: 64Mi, 2Gi
    #[arg(long, value_name = "QUANTITY", value_parser = quantity)]
    pub memory: Option<String>,
    /// Maximum time to run; after it, the command is stopped and the process fails
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub deadline: Option<Duration>,
    /// Maximum time until the command starts; after it, the process fails
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub start_deadline: Option<Duration>,
    /// Number of retries after a failure of the command or the infrastructure
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=100))]
    pub retries: Option<u32>,
    /// Delete the object this long after the process ends
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub ttl: Option<Duration>,
    /// What to do with processes that outlive the command
    #[arg(long, value_name = "HOW", value_enum)]
    pub leftovers: Option<LeftoversFlag>,
    /// Working directory of the command
    #[arg(short, long, value_name = "PATH")]
    pub workdir: Option<String>,
    /// Labels of the process
    #[arg(short, long, value_name = "NAME=VALUE", value_delimiter = ',')]
    pub labels: Vec<String>,
    /// Annotation of the process. Can be repeated
    #[arg(long, value_name = "NAME=VALUE")]
    pub annotation: Vec<String>,
    /// Merge standard error into standard output, in the order written
    #[arg(long)]
    pub merge: bool,
}

/// What to do with processes that outlive the command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LeftoversFlag {
    /// They are killed and counted
    Kill,
    /// The process ends when the last of them has
    Wait,
}

const USAGE: &str = "rproc run [NAME] --image IMAGE [OPTIONS] -- COMMAND [ARGUMENT]...
       rproc run [NAME] --file FILE [OPTIONS]";

const EXAMPLES: &str = "Examples:
  # Run a command, stream its output, exit with its exit code
  rproc run --image busybox:1.36 -- sh -c 'echo hello; exit 7'

  # Set a name, an environment variable and a memory limit; delete it at the end
  rproc run build --rm --image rust:1 -e CI --memory 2Gi -- cargo test

  # Open a shell; detach with Ctrl-P Ctrl-Q, and attach again from anywhere
  rproc run work -it --image debian:13 -- bash
  rproc attach -it work

  # Send a file through a filter
  rproc run -i --image busybox:1.36 -- sort < words

  # Read the standard input from a ConfigMap, without a client
  kubectl create configmap input --from-file=words
  rproc run --stdin-from configmap/input:words --image busybox:1.36 -- sort

  # Start it, and read the output later
  rproc run report --detach --image busybox:1.36 -- sh -c 'sleep 60; date'
  rproc logs -f report

  # Create the process in a file and follow it; replace it and run it again
  rproc run -f examples/hello.yaml
  rproc run -f examples/hello.yaml --replace

  # Only print the object
  rproc run hello --image busybox:1.36 --dry-run=client -o yaml -- echo hello

Ctrl-C stops the process; press it again to detach. If rproc ends in any other
way, the process keeps running.";

/// `secret/NAME` or `configmap/NAME` on the command line.
pub(super) fn env_source(text: &str) -> Result<EnvFromSource, String> {
    let (kind, name) = text.split_once('/').unwrap_or((text, ""));
    if !identifier::is_name(name) {
        return Err("expected secret/NAME or configmap/NAME".to_owned());
    }
    let name = name.to_owned();
    match kind {
        "secret" => Ok(EnvFromSource {
            secret_ref: Some(SecretEnvSource { name, optional: None }),
            ..EnvFromSource::default()
        }),
        "configmap" | "cm" => Ok(EnvFromSource {
            config_map_ref: Some(ConfigMapEnvSource { name, optional: None }),
            ..EnvFromSource::default()
        }),
        _ => Err("expected secret/NAME or configmap/NAME".to_owned()),
    }
}

/// `secret/NAME:KEY` or `configmap/NAME:KEY` on the command line.
pub(super) fn stdin_source(text: &str) -> Result<StdinSource, String> {
    let expected = || "expected secret/NAME:KEY or configmap/NAME:KEY".to_owned();
    let (kind, rest) = text.split_once('/').ok_or_else(expected)?;
    let (name, key) = rest.split_once(':').ok_or_else(expected)?;
    if !identifier::is_name(name) || !identifier::is_key(key) {
        return Err(expected());
    }
    let (name, key) = (name.to_owned(), key.to_owned());
    match kind {
        "secret" => Ok(StdinSource {
            secret_key_ref: Some(SecretKey { name, key }),
            ..StdinSource::default()
        }),
        "configmap" | "cm" => Ok(StdinSource {
            config_map_key_ref: Some(ConfigMapKey { name, key }),
            ..StdinSource::default()
        }),
        _ => Err(expected()),
    }
}

/// A volume and where it is mounted.
#[derive(Clone, Debug, PartialEq)]
pub struct Mounted {
    pub(super) volume: Volume,
    pub(super) mount: VolumeMount,
}

/// `secret/NAME:PATH`, `configmap/NAME:PATH`, `pvc/NAME:PATH[:ro]` or `empty:PATH` on the command line.
pub(super) fn volume(text: &str) -> Result<Mounted, String> {
    const EXPECTED: &str = "expected secret/NAME:PATH, configmap/NAME:PATH, pvc/NAME:PATH[:ro] or empty:PATH";
    let (source, place) = text.split_once(':').ok_or(EXPECTED)?;
    let (path, read_only) = match place.strip_suffix(":ro") {
        Some(path) => (path, true),
        None => (place, false),
    };
    if !path.starts_with('/') {
        return Err(format!("{EXPECTED}; PATH begins with /"));
    }
    let (kind, name) = source.split_once('/').unwrap_or((source, ""));
    let mut volume = Volume::default();
    match (kind, identifier::is_name(name)) {
        ("secret", true) => {
            volume.secret = Some(SecretVolumeSource {
                secret_name: Some(name.to_owned()),
                ..SecretVolumeSource::default()
            });
        }
        ("configmap" | "cm", true) => {
            volume.config_map = Some(ConfigMapVolumeSource {
                name: name.to_owned(),
                ..ConfigMapVolumeSource::default()
            });
        }
        ("pvc" | "persistentvolumeclaim", true) => {
            volume.persistent_volume_claim = Some(PersistentVolumeClaimVolumeSource {
                claim_name: name.to_owned(),
                read_only: read_only.then_some(true),
            });
        }
        ("empty" | "emptydir", false) if name.is_empty() => volume.empty_dir = Some(EmptyDirVolumeSource::default()),
        _ => return Err(EXPECTED.to_owned()),
    }
    let mount = VolumeMount {
        mount_path: path.to_owned(),
        read_only: read_only.then_some(true),
        ..VolumeMount::default()
    };
    Ok(Mounted { volume, mount })
}

/// The user and group of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    pub(super) user: i64,
    pub(super) group: Option<i64>,
}

/// `UID[:GID]` on the command line.
pub(super) fn user(text: &str) -> Result<Owner, String> {
    let (user, group) = match text.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (text, None),
    };
    let number = |text: &str| text.parse::<u32>().ok().map(i64::from);
    let expected = "expected numbers, UID or UID:GID: a pod takes no names";
    let user = number(user).ok_or(expected)?;
    let group = group.map(|group| number(group).ok_or(expected)).transpose()?;
    Ok(Owner { user, group })
}

/// A quantity of Kubernetes ("Quantity" in its API reference): a number and a unit.
pub(super) fn quantity(text: &str) -> Result<String, String> {
    const UNITS: [&str; 15] = [
        "", "n", "u", "m", "k", "M", "G", "T", "P", "E", "Ki", "Mi", "Gi", "Ti", "Pi",
    ];
    let digits = text.trim_end_matches(|character: char| character.is_ascii_alphabetic());
    let is_number = digits
        .parse::<f64>()
        .is_ok_and(|number| number.is_finite() && number >= 0.0);
    if is_number && (UNITS.contains(&&text[digits.len()..]) || &text[digits.len()..] == "Ei") {
        return Ok(text.to_owned());
    }
    Err("expected a number with a unit, like 500m, 2, 64Mi or 1.5Gi".to_owned())
}
