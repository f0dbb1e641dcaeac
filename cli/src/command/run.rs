//! `rproc run`: creates a process from flags or from a file, and follows it.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::ValueEnum;
use k8s_openapi::api::core::v1::EnvFromSource;

use super::launch::{self, DryRun, Plan, ViewArgs};
use super::live::Signals;
use super::{Failure, duration, open};
use crate::args::{GlobalArgs, given, object_name, process_name};

mod file;
mod object;

use object::quantity;

/// Flags of `run`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES, override_usage = USAGE)]
pub struct RunArgs {
    /// Name of the new process; made from the image's where absent
    #[arg(value_parser = process_name)]
    pub name: Option<String>,
    /// Image of the container. Its ENTRYPOINT and CMD are not used: the command says all
    #[arg(long, required_unless_present = "file", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    pub image: Option<String>,
    /// Create the RemoteProcess of a file (YAML or JSON) instead; - for standard input
    #[arg(short, long, value_name = "FILE", conflicts_with_all = ["image", "specification", "command"])]
    pub file: Option<PathBuf>,
    /// What the object says.
    #[command(flatten)]
    pub specification: SpecificationArgs,
    /// How it is followed.
    #[command(flatten)]
    pub view: ViewArgs,
    /// Only show what would be created; "server" asks the API server, too
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
    /// Delete the process of this name first, if there is one
    #[arg(long)]
    pub replace: bool,
    /// The command and its arguments, run exactly as typed
    #[arg(last = true, required_unless_present = "file", value_name = "COMMAND")]
    pub command: Vec<String>,
}

/// What the flags of `run` say of the object.
#[derive(Debug, Default, clap::Args)]
#[group(id = "specification", multiple = true)]
pub struct SpecificationArgs {
    /// When to pull the image
    #[arg(long, value_name = "POLICY", value_parser = ["Always", "IfNotPresent", "Never"])]
    pub image_pull_policy: Option<String>,
    /// Environment variable; without a value, the one that it has here. May be given more than once
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    pub env: Vec<OsString>,
    /// File with environment variables, one NAME=VALUE or NAME on each line; # begins a comment
    #[arg(long, value_name = "FILE")]
    pub env_file: Vec<PathBuf>,
    /// Environment variables from each key of a Secret or ConfigMap
    #[arg(long, value_name = "secret/NAME|configmap/NAME", value_parser = object::env_source)]
    pub env_from: Vec<EnvFromSource>,
    /// Volume: secret/NAME:PATH, configmap/NAME:PATH, pvc/NAME:PATH (add :ro for read-only) or empty:PATH. May be given more than once
    #[arg(long, value_name = "VOLUME", value_parser = object::volume)]
    pub volume: Vec<object::Mounted>,
    /// User and group as which the command runs, by number
    #[arg(short, long, value_name = "UID[:GID]", value_parser = object::user)]
    pub user: Option<object::Owner>,
    /// ServiceAccount of the pod. The command gets its token
    #[arg(long, value_name = "NAME", value_parser = object_name)]
    pub service_account: Option<String>,
    /// CPU to request: 500m, 2
    #[arg(long, value_name = "QUANTITY", value_parser = quantity)]
    pub cpu: Option<String>,
    /// Most CPU that it may use
    #[arg(long, value_name = "QUANTITY", value_parser = quantity)]
    pub cpu_limit: Option<String>,
    /// Memory to request, and its limit: 64Mi, 2Gi
    #[arg(long, value_name = "QUANTITY", value_parser = quantity)]
    pub memory: Option<String>,
    /// Longest time for which the command may run; then it is stopped, and has failed
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub deadline: Option<Duration>,
    /// Longest time until the command starts; then the process has failed
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub start_deadline: Option<Duration>,
    /// How often to try again after a failure of the command, and of the infrastructure
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=100))]
    pub retries: Option<u32>,
    /// Delete the object this long after its end
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub ttl: Option<Duration>,
    /// What happens with processes that outlive the command
    #[arg(long, value_name = "HOW", value_enum)]
    pub leftovers: Option<LeftoversFlag>,
    /// Directory in which the command starts
    #[arg(short, long, value_name = "PATH")]
    pub workdir: Option<String>,
    /// Labels of the process
    #[arg(short, long, value_name = "NAME=VALUE", value_delimiter = ',')]
    pub labels: Vec<String>,
    /// Annotation of the process. May be given more than once
    #[arg(long, value_name = "NAME=VALUE")]
    pub annotation: Vec<String>,
    /// Join standard error to standard output, in the order in which both were written
    #[arg(long)]
    pub merge: bool,
}

/// What happens with processes that outlive the command.
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

  # Under a name, with an environment and a memory limit; delete it at the end
  rproc run build --rm --image rust:1 -e CI --memory 2Gi -- cargo test

  # A shell to work in; leave it by Ctrl-P Ctrl-Q, come back from anywhere
  rproc run work -it --image debian:13 -- bash
  rproc attach -it work

  # A file through a filter
  rproc run -i --image busybox:1.36 -- sort < words

  # Start it, leave, and come back later
  rproc run report --detach --image busybox:1.36 -- sh -c 'sleep 60; date'
  rproc logs -f report

  # The process of a file, followed; and once more, in the place of the first
  rproc run -f examples/hello.yaml
  rproc run -f examples/hello.yaml --replace

  # Only show the object
  rproc run hello --image busybox:1.36 --dry-run=client -o yaml -- echo hello

Ctrl-C asks the process to stop; a second one leaves it to itself. No other
end of rproc touches the process.";

/// Creates the process, follows it, and answers its code.
///
/// # Errors
/// The object is refused, or the end of the process cannot be known.
pub async fn run(global: &GlobalArgs, args: RunArgs) -> Result<u8, Failure> {
    let name = args.name.clone().unwrap_or_default();
    launch::recorded(global, &args.view, &name, start(global, &args)).await
}

async fn start(global: &GlobalArgs, args: &RunArgs) -> Result<u8, Failure> {
    launch::check(&args.view, args.dry_run)?;
    let mut object = match &args.file {
        Some(path) => file::read(path, args)?,
        None => object::build(args, |name| std::env::var_os(name))?,
    };
    let mut global = global.clone();
    match (given(global.namespace.as_deref()), &object.metadata.namespace) {
        (Some(asked), Some(written)) if asked != *written => {
            let sentence = format!("the file says namespace {written}, and -n says {asked}");
            return Err(Failure::new(sentence));
        }
        (None, Some(written)) => global.namespace = Some(written.clone()),
        (asked, _) => object.metadata.namespace = asked,
    }
    launch::at_terminal(&mut object, &args.view);
    if args.dry_run == DryRun::Client {
        return launch::show(&args.view, args.dry_run, &object);
    }
    // From here on Ctrl-C is for the process.
    let signals = Signals::listen()?;
    let cluster = open(&global).await?;
    let plan = Plan {
        object,
        dry_run: args.dry_run,
        replace: args.replace,
        is_named: args.name.is_some() || args.file.is_some(),
    };
    launch::launch(cluster, &args.view, plan, signals).await
}
