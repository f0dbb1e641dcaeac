//! `rproc run`: creates a process and streams it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::ValueEnum;
use kube::api::{DeleteParams, PostParams, Preconditions};
use remoteprocess_api::RemoteProcess;
use remoteprocess_proto::v1::{Exit, ProcessKey};
use tokio::time::Instant;

use super::live::{Ending, Leaving, OnInterrupt, Signals, conclude, until_end};
use super::sequel::Sequel;
use super::{DataFormat, Failure, duration, open, print, resource};
use crate::args::{GlobalArgs, given, process_name};
use crate::connect::{Cluster, Relay, Rule};
use crate::exit::{self, Record, Verdict};
use crate::follow::{Follower, Ledger, NEW_LIMIT, Narrator, Want};
use crate::interact::{DEFAULT_DETACH_KEYS, DetachKeys, Interaction, Manner};
use crate::output::{Form, Output};

mod object;

use object::{build, quantity};

/// Flags of `run`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct RunArgs {
    /// Name of the new process; made from the image's where absent
    #[arg(value_parser = process_name)]
    pub name: Option<String>,
    /// Image of the container
    #[arg(long)]
    pub image: String,
    /// When to pull the image
    #[arg(long, value_name = "POLICY", value_parser = ["Always", "IfNotPresent", "Never"])]
    pub image_pull_policy: Option<String>,
    /// Environment variable; without a value, the one that it has here. May be given more than once
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    pub env: Vec<String>,
    /// CPU to request: 500m, 2
    #[arg(long, value_name = "QUANTITY", value_parser = quantity)]
    pub cpu: Option<String>,
    /// Memory to request, and its limit: 64Mi, 2Gi
    #[arg(long, value_name = "QUANTITY", value_parser = quantity)]
    pub memory: Option<String>,
    /// Longest time for which the command may run: then it is stopped, and has failed
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub deadline: Option<Duration>,
    /// How often to try again after a failure of the command, and of the infrastructure
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=100))]
    pub retries: Option<u32>,
    /// Directory in which the command starts
    #[arg(long, value_name = "PATH")]
    pub workdir: Option<String>,
    /// Labels of the process
    #[arg(short, long, value_name = "NAME=VALUE", value_delimiter = ',')]
    pub labels: Vec<String>,
    /// Join standard error to standard output, in the order in which both were written
    #[arg(long)]
    pub merge: bool,
    /// Pass standard input on to the command; at its end the command reads the end
    #[arg(short = 'i', long)]
    pub stdin: bool,
    /// Run the command at a terminal; with -i the keys go to it one by one, Ctrl-C too
    #[arg(short, long, conflicts_with = "timestamps")]
    pub tty: bool,
    /// Keys that leave a process at a terminal to itself; "" for none
    #[arg(long, value_name = "KEYS", default_value = DEFAULT_DETACH_KEYS)]
    pub detach_keys: DetachKeys,
    /// Only create it; print its name
    #[arg(short, long)]
    pub detach: bool,
    /// Delete it when it has ended and its output is written
    #[arg(long, conflicts_with = "detach")]
    pub rm: bool,
    /// Put the time before each line
    #[arg(long)]
    pub timestamps: bool,
    /// Let control characters through to a terminal
    #[arg(long)]
    pub raw: bool,
    /// Say nothing of our own but errors
    #[arg(short, long)]
    pub quiet: bool,
    /// Only show what would be created; "server" asks the API server too
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
    /// Format in which to print the object, with --dry-run or --detach
    #[arg(short, long, value_name = "FORMAT", value_enum)]
    pub output: Option<CreatedFormat>,
    /// File for the result as JSON: it tells a program's 125 from ours
    #[arg(long, value_name = "FILE", conflicts_with = "detach")]
    pub result_file: Option<PathBuf>,
    /// The command and its arguments, run exactly as typed
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub command: Vec<String>,
}

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

  # Only show the object
  rproc run hello --image busybox:1.36 --dry-run=client -o yaml -- echo hello

Ctrl-C asks the process to stop; a second one leaves it to itself. No other
end of rproc touches the process.";

/// Where a dry run ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DryRun {
    /// It is none
    None,
    /// Here
    Client,
    /// In the API server, which checks the object
    Server,
}

/// How a created object is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum CreatedFormat {
    /// As JSON
    Json,
    /// As YAML
    Yaml,
    /// Its name only
    Name,
}

/// Creates the process, streams it, and answers its code.
///
/// # Errors
/// The object is refused, or the end of the process cannot be known.
pub async fn run(global: &GlobalArgs, args: RunArgs) -> Result<u8, Failure> {
    let Some(path) = args.result_file.clone() else {
        return start(global, args).await;
    };
    // The result of an earlier run must not be taken for that of this one, and a path that cannot be written shows now.
    exit::empty_record(&path).map_err(|error| unwritable(&path, &error))?;
    let result = start(global, args).await;
    if let Err(failure) = &result
        && std::fs::metadata(&path).is_ok_and(|file| file.is_file() && file.len() == 0)
    {
        let verdict = Verdict {
            code: failure.code,
            sentence: Some(failure.text.clone()),
        };
        let record = Record::new("", "", "", None, &verdict);
        record.write(&path).map_err(|error| unwritable(&path, &error))?;
    }
    result
}

fn unwritable(path: &std::path::Path, error: &std::io::Error) -> Failure {
    Failure::new(format!("cannot write the result file {}: {error}", path.display()))
}

async fn start(global: &GlobalArgs, args: RunArgs) -> Result<u8, Failure> {
    let is_shown = args.detach || args.dry_run != DryRun::None;
    if args.output.is_some() && !is_shown {
        return Err(Failure::new(
            "-o is for --dry-run and --detach: otherwise standard output is the program's",
        ));
    }
    let mut object = build(&args, |name| std::env::var(name).ok()).map_err(Failure::new)?;
    if args.dry_run == DryRun::Client {
        object.metadata.namespace = given(global.namespace.as_deref());
        return show(&args, &object);
    }
    // From here on Ctrl-C is for the process.
    let mut signals = Signals::listen()?;
    let cluster = open(global).await?;
    let created = tokio::select! {
        created = create(&cluster, &object, args.dry_run == DryRun::Server) => created?,
        number = signals.next() => {
            let text = "interrupted while the process was being created: it may be there. See: rproc get";
            return Err(Failure { code: 128 + number, text: text.into() });
        }
    };
    if is_shown {
        return show(&args, &created);
    }
    let (name, uid) = (
        created.metadata.name.unwrap_or_default(),
        created.metadata.uid.unwrap_or_default(),
    );
    let is_tried_again = created.spec.retries.is_some();
    stream(cluster, &args, (&name, &uid, is_tried_again), signals).await
}

fn show(args: &RunArgs, object: &RemoteProcess) -> Result<u8, Failure> {
    let name = object
        .metadata
        .name
        .as_deref()
        .or(object.metadata.generate_name.as_deref())
        .unwrap_or_default();
    match args.output {
        Some(CreatedFormat::Json) => DataFormat::Json.print(object)?,
        Some(CreatedFormat::Yaml) => DataFormat::Yaml.print(object)?,
        Some(CreatedFormat::Name) => print(&format!("{}\n", resource(name)))?,
        None => {
            let how = match args.dry_run {
                DryRun::None => "",
                DryRun::Client => " (dry run)",
                DryRun::Server => " (server dry run)",
            };
            print(&format!("{} created{how}\n", resource(name)))?;
        }
    }
    Ok(0)
}

async fn create(cluster: &Cluster, object: &RemoteProcess, dry_run: bool) -> Result<RemoteProcess, Failure> {
    let params = PostParams {
        dry_run,
        field_manager: Some("rproc".into()),
    };
    cluster.processes().create(&params, object).await.map_err(|error| match &error {
        kube::Error::Api(status) if status.reason == "AlreadyExists" => {
            let name = object.metadata.name.as_deref().unwrap_or_default();
            Failure::new(format!(
                "there is a process {name} in namespace {} already. See it: rproc logs {name}. Delete it: rproc delete {name}",
                cluster.namespace
            ))
        }
        _ => cluster.error(&error, &Rule::process("create", "remoteprocess-edit"), "create the process").into(),
    })
}

async fn stream(
    cluster: Arc<Cluster>,
    args: &RunArgs,
    (name, uid, is_tried_again): (&str, &str, bool),
    signals: Signals,
) -> Result<u8, Failure> {
    let form = Form::Bytes {
        is_stamped: args.timestamps,
    };
    let output = Output::standard(form, args.raw || args.tty)?;
    if args.name.is_none() && !args.quiet {
        output.line(&format!("{name} created")).await?;
    }
    let key = ProcessKey {
        namespace: cluster.namespace.clone(),
        name: name.to_owned(),
        uid: uid.to_owned(),
    };
    let sequel = is_tried_again.then(|| Sequel::new(&cluster, &key));
    let mut follower = Follower {
        dial: Relay::new(cluster.clone()),
        ledger: Ledger::new(Want {
            process: key.clone(),
            follow: true,
            ..Want::default()
        }),
        output: &output,
        narrator: Narrator::new(name, args.quiet),
        unknown_until: Instant::now() + NEW_LIMIT,
    };
    let leaving = leaving(&cluster, args, &key, signals)?;
    let (ended, is_input_lost) = match until_end(&mut follower, (sequel.as_ref(), args.quiet), leaving).await {
        Ending::Followed { result, is_input_lost } => (*result, is_input_lost),
        Ending::Left { code, sentence } => {
            output.answer(&sentence);
            // A reader who reads no more does not hold us.
            let _ = tokio::time::timeout(Duration::from_secs(1), output.flush()).await;
            let verdict = Verdict {
                code,
                sentence: Some(sentence),
            };
            record(&cluster, args, name, uid, None, &verdict)?;
            return Ok(verdict.code);
        }
    };
    let (exit, verdict) = conclude(&follower.ledger, name, ended, is_input_lost)?;
    if let Some(sentence) = verdict
        .sentence
        .as_ref()
        .filter(|_| !args.quiet || verdict.code == exit::UNKNOWN)
    {
        output.line(sentence).await?;
    }
    record(&cluster, args, name, uid, exit.as_ref(), &verdict)?;
    if args.rm && exit.is_some() {
        remove(&cluster, &output, name, uid).await?;
    }
    output.flush().await?;
    Ok(verdict.code)
}

/// What may end it from here.
fn leaving<'a>(
    cluster: &'a Arc<Cluster>,
    args: &RunArgs,
    key: &ProcessKey,
    signals: Signals,
) -> Result<Leaving<'a>, Failure> {
    let manner = Manner {
        tty: args.tty,
        detach_keys: args.detach_keys.clone(),
        take_over: false,
        redraw: false,
    };
    let interaction = match args.stdin {
        true => Interaction::start(Relay::new(cluster.clone()), key.clone(), manner)?,
        false => Interaction::none(),
    };
    Ok(Leaving {
        interaction,
        signals,
        on_interrupt: OnInterrupt::Stop(cluster),
    })
}

fn record(
    cluster: &Cluster,
    args: &RunArgs,
    name: &str,
    uid: &str,
    exit: Option<&Exit>,
    verdict: &Verdict,
) -> Result<(), Failure> {
    let Some(path) = &args.result_file else { return Ok(()) };
    let record = Record::new(&cluster.namespace, name, uid, exit, verdict);
    record.write(path).map_err(|error| unwritable(path, &error))
}

async fn remove(cluster: &Cluster, output: &Output, name: &str, uid: &str) -> Result<(), Failure> {
    let params = DeleteParams {
        preconditions: Some(Preconditions {
            uid: Some(uid.to_owned()),
            resource_version: None,
        }),
        ..DeleteParams::default()
    };
    match cluster.processes().delete(name, &params).await {
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {}
        Err(error) => {
            let rule = Rule::process("delete", "remoteprocess-edit");
            output
                .line(&cluster.sentence(&error, &rule, "delete the process"))
                .await?;
        }
        Ok(_) => {}
    }
    Ok(())
}
