//! Creates a process and follows it: the part that `run` and `rerun` share.

use std::ffi::OsString;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::{Arg, ValueEnum};
use futures::future::join;
use kube::Resource;
use kube::api::{DeleteParams, PostParams, Preconditions};
use kube::core::{DynamicObject, Request};
use remoteprocess_api::{RemoteProcess, names};
use remoteprocess_client::dial::NEW_LIMIT;
use remoteprocess_client::observe::{self, Seen};
use remoteprocess_client::{Cluster, DialError, Follower, Ledger, Relay, Rule, Want};
use remoteprocess_proto::v1::{Cursor, Exit, ProcessKey, WindowSize};
use serde::Serialize;
use serde_json::json;
use tokio::time::{Instant, timeout};

use super::delete;
use super::follow::{Leaving, OnInterrupt, Signals, conclude, say_how_to_leave, until_end};
use super::next_attempt::{NextAttempt, STATUS_LAG};
use crate::args::{GlobalArgs, given, process_name};
use crate::exit::{self, Record, Verdict};
use crate::failure::Failure;
use crate::interact::{DEFAULT_DETACH_KEYS, DetachKeys, Interaction, Manner, check_stdin, terminal, window};
use crate::output::{Control, Form, Output};
use crate::print::{DataFormat, print, resource};
use crate::progress::Messages;

/// How long to try a given address before the process is created nevertheless.
const FIRST_LOOK: Duration = Duration::from_secs(10);

/// How a new process is followed; shared by all commands that create one.
#[derive(Debug, clap::Args)]
pub struct ViewArgs {
    /// Pass standard input to the command; when it ends, the command reads end of file
    #[arg(short = 'i', long)]
    pub stdin: bool,
    /// Allocate a terminal for the command; with -i each key goes to the command, including Ctrl-C
    #[arg(short, long, conflicts_with = "timestamps")]
    pub tty: bool,
    /// Key sequence to detach from a process at a terminal; "" for none
    #[arg(long, value_name = "KEYS", default_value = DEFAULT_DETACH_KEYS)]
    pub detach_keys: DetachKeys,
    /// Create the process, print its name, and exit
    #[arg(short, long)]
    pub detach: bool,
    /// Delete the process when it has ended and its output is printed
    #[arg(long, conflicts_with = "detach")]
    pub rm: bool,
    /// Print the time before each line
    #[arg(long)]
    pub timestamps: bool,
    /// Send control characters to the terminal unchanged
    #[arg(long)]
    pub raw: bool,
    /// Print no messages of rproc except errors
    #[arg(short, long)]
    pub quiet: bool,
    /// Format of the object, with --dry-run or --detach
    #[arg(short, long, value_name = "FORMAT", value_enum)]
    pub output: Option<CreatedFormat>,
    /// File to write the result to as JSON; it distinguishes a program's 125 from that of rproc
    #[arg(long, value_name = "FILE", conflicts_with = "detach")]
    pub result_file: Option<PathBuf>,
}

/// Where a dry run ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DryRun {
    /// Create it
    None,
    /// On this side: the API server is not asked
    Client,
    /// In the API server, which checks the object and stores nothing
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

/// What to create.
pub struct Plan {
    /// The object.
    pub object: DynamicObject,
    /// Whether to show it only.
    pub dry_run: DryRun,
    /// Whether a process of the same name is deleted first.
    pub replace: bool,
    /// Whether the user chose its name.
    pub is_named: bool,
}

/// Checks what clap cannot express.
pub fn check(view: &ViewArgs, dry_run: DryRun) -> Result<(), Failure> {
    let is_shown = view.detach || dry_run != DryRun::None;
    if view.output.is_some() && !is_shown {
        let message = "-o is for --dry-run and --detach: otherwise standard output is the program's";
        return Err(Failure::new(message));
    }
    if view.result_file.is_some() && dry_run != DryRun::None {
        return Err(Failure::new("--result-file: a dry run has no result"));
    }
    if view.stdin && !is_shown {
        check_stdin()?;
    }
    Ok(())
}

/// Gives a program that `-t` puts at a terminal the right size and type from its start.
pub fn at_terminal(object: &mut DynamicObject, view: &ViewArgs) {
    if view.tty {
        look_like(object, window(), std::env::var("TERM").ok().as_deref());
    }
}

/// Makes the trace of the process a part of the caller's, unless the object names another. The caller's is in the
/// environment variable `TRACEPARENT` (OpenTelemetry, "Environment Variables as Context Propagation Carriers").
fn continue_trace(object: &mut DynamicObject, traceparent: Option<&str>) {
    if let Some(traceparent) = traceparent.filter(|text| is_traceparent(text)) {
        let annotations = object.metadata.annotations.get_or_insert_default();
        let annotation = annotations.entry(names::ANNOTATION_TRACEPARENT.to_owned());
        annotation.or_insert_with(|| traceparent.to_owned());
    }
}

/// Whether it is a `traceparent` of the version 00 (W3C Trace Context, section 3.2).
fn is_traceparent(text: &str) -> bool {
    let is_hex = |part: &str| part.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    let parts: Vec<&str> = text.split('-').collect();
    let lengths: Vec<usize> = parts.iter().map(|part| part.len()).collect();
    lengths == [2, 32, 16, 2] && parts[0] == "00" && parts.iter().all(|part| is_hex(part))
}

/// Sets the size of the user's window, and the type of the user's terminal unless the object names one.
fn look_like(object: &mut DynamicObject, window: Option<WindowSize>, term: Option<&str>) {
    let Some(spec) = object.data["spec"].as_object_mut() else {
        return;
    };
    if let Some(size) = window {
        let side = |length: u32| length.min(u16::MAX.into());
        let size = json!({"rows": side(size.rows), "columns": side(size.columns)});
        spec.insert("ttySize".to_owned(), size);
    }
    let Some(term) = term.and_then(terminal::term) else {
        return;
    };
    let env = spec.entry("env").or_insert_with(|| json!([]));
    if let Some(env) = env.as_array_mut()
        && env.iter().all(|variable| variable["name"] != "TERM")
    {
        env.push(json!({"name": "TERM", "value": term}));
    }
}

/// Runs `work`, and ensures that the result file reports how it ended, also if it failed early.
///
/// # Errors
/// Those of `work`, and a file that cannot be written.
pub async fn recorded(
    global: &GlobalArgs,
    view: &ViewArgs,
    name: &str,
    work: impl Future<Output = Result<u8, Failure>>,
) -> Result<u8, Failure> {
    let Some(path) = &view.result_file else {
        return work.await;
    };
    // The result of an earlier run must not be taken for that of this one, and an unwritable path must fail now.
    exit::empty_record(path).map_err(|error| unwritable(path, &error))?;
    let result = work.await;
    if let Err(failure) = &result
        && std::fs::metadata(path).is_ok_and(|file| file.is_file() && file.len() == 0)
    {
        let verdict = Verdict {
            code: failure.code,
            message: Some(failure.text.clone()),
        };
        let namespace = given(global.namespace.as_deref()).unwrap_or_default();
        let record = Record::new(&namespace, name, "", None, &verdict);
        record.write(path).map_err(|error| unwritable(path, &error))?;
    }
    result
}

/// Writes the result file also for wrong arguments, so that the result of an earlier run is not taken for that of this
/// one.
pub fn record_usage(arguments: &[OsString], text: &str) {
    let words = arguments.iter().skip(1).take_while(|word| *word != "--");
    let words: Vec<String> = words.map(|word| word.to_string_lossy().into_owned()).collect();
    let values = values(&words);
    let of = |id: &str| values.iter().find(|(found, value)| found == id && !value.is_empty());
    let Some(path) = of("result_file").map(|(_, path)| PathBuf::from(path)) else {
        return;
    };
    // The first word without a flag is the verb.
    let name = values.iter().filter(|(id, _)| id.is_empty()).nth(1);
    let name = name.and_then(|(_, name)| process_name(name).ok()).unwrap_or_default();
    let namespace = of("namespace")
        .map(|(_, namespace)| namespace.as_str())
        .unwrap_or_default();
    let verdict = Verdict {
        code: exit::UNKNOWN,
        message: Some(text.to_owned()),
    };
    let record = Record::new(namespace, &name, "", None, &verdict);
    // The exit code reports the failure, too.
    let _ = exit::empty_record(&path).and_then(|()| record.write(&path));
}

/// The values in a command line that is wrong somewhere, each with the id of its argument; without one for words that
/// belong to no flag.
fn values(words: &[String]) -> Vec<(String, String)> {
    let mut parser = super::parser(None);
    parser.build();
    let Some(verb) = words.iter().find_map(|word| parser.find_subcommand(word)) else {
        return Vec::new();
    };
    let takes = |argument: &&Arg| argument.get_num_args().is_some_and(|count| count.takes_values());
    let find = |is_meant: &dyn Fn(&Arg) -> bool| verb.get_arguments().find(|argument| is_meant(argument)).filter(takes);
    let mut found = Vec::new();
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let (argument, value) = if let Some(long) = word.strip_prefix("--") {
            let (name, value) = long.split_once('=').map_or((long, ""), |(name, value)| (name, value));
            (find(&|argument| argument.get_long() == Some(name)), value)
        } else if let Some(short) = word.strip_prefix('-').filter(|short| !short.is_empty()) {
            // The first letter that takes a value takes the rest.
            let first = short.char_indices().find_map(|(at, letter)| {
                let argument = find(&|argument| argument.get_short() == Some(letter))?;
                Some((Some(argument), &short[at + letter.len_utf8()..]))
            });
            first.unwrap_or_default()
        } else {
            found.push((String::new(), word.clone()));
            continue;
        };
        let Some(argument) = argument else { continue };
        let value = match value.strip_prefix('=').unwrap_or(value) {
            "" => words.next().cloned(),
            value => Some(value.to_owned()),
        };
        found.extend(value.map(|value| (argument.get_id().to_string(), value)));
    }
    found
}

fn unwritable(path: &Path, error: &std::io::Error) -> Failure {
    Failure::new(format!("cannot write the result file {}: {error}", path.display()))
}

/// Creates the process and follows it to its end.
pub async fn launch(
    cluster: Arc<Cluster>,
    view: &ViewArgs,
    mut plan: Plan,
    mut signals: Signals,
) -> Result<u8, Failure> {
    continue_trace(&mut plan.object, std::env::var("TRACEPARENT").ok().as_deref());
    let is_shown = view.detach || plan.dry_run != DryRun::None;
    let mut relay = Relay::new(cluster.clone());
    let create = async {
        if !is_shown {
            may_follow(&cluster, &mut relay, view.stdin).await?;
        }
        if let Some(name) = plan.object.metadata.name.as_deref().filter(|_| plan.replace)
            && plan.dry_run == DryRun::None
        {
            delete::and_wait(&cluster, name).await?;
        }
        create(&cluster, &plan).await
    };
    let created = tokio::select! {
        created = create => created?,
        number = signals.next() => {
            let text = "interrupted while the process was being created: it may be there. See: rproc get";
            return Err(Failure { code: 128 + number, text: text.into() });
        }
    };
    if is_shown {
        return show(view, plan.dry_run, &created);
    }
    stream(relay, cluster, view, (&created, plan.is_named), signals).await
}

/// Fails for a process that the user could not follow from here, before it is created: the user would fix that, repeat
/// the command, and run the program twice. A relay that is temporarily unavailable is no reason.
async fn may_follow(cluster: &Cluster, relay: &mut Relay, writes: bool) -> Result<(), Failure> {
    // A given address may be wrong for good; the other addresses come from the operator.
    let is_given = cluster.server.is_some();
    let way = async {
        let trust = relay.trust().await?;
        // A certificate takes a moment. It is requested while the pod starts, unless the request may be refused.
        let certificate = Rule::connect("certificates.k8s.io", "certificatesigningrequests", "create");
        if is_given || !cluster.has_right(&certificate, None).await.unwrap_or(true) {
            relay.identity(&trust).await?;
        }
        match is_given {
            true => timeout(FIRST_LOOK, relay.connect_by())
                .await
                .map_or(Ok(()), |way| way.map(drop)),
            false => Ok(()),
        }
    };
    let rights = async {
        let output = Rule::part("remoteprocesses/log", "get", "remoteprocess-view");
        let input = Rule::part("remoteprocesses/attach", "create", "remoteprocess-edit");
        for rule in [Some(output), writes.then_some(input)].into_iter().flatten() {
            if cluster.has_right(&rule, Some(&cluster.namespace)).await == Some(false) {
                return Some(rule);
            }
        }
        None
    };
    let (way, missing) = join(way, rights).await;
    let why = match (missing, way) {
        (Some(rule), _) => cluster.refusal(&rule, "follow this process"),
        (None, Ok(()) | Err(DialError::Unreachable(_))) => return Ok(()),
        (None, Err(error)) => error.to_string(),
    };
    Err(Failure::new(format!(
        "{why}\nNothing was created. To create a process without following it: --detach"
    )))
}

/// Shows what was created, or would be created.
pub fn show(view: &ViewArgs, dry_run: DryRun, object: &(impl Serialize + Resource)) -> Result<u8, Failure> {
    let metadata = object.meta();
    let name = metadata.name.as_deref().or(metadata.generate_name.as_deref());
    let name = name.unwrap_or_default();
    match (view.output, dry_run) {
        (Some(CreatedFormat::Json), _) => DataFormat::Json.print(object)?,
        (Some(CreatedFormat::Yaml), _) => DataFormat::Yaml.print(object)?,
        (Some(CreatedFormat::Name), _) => print(&format!("{}\n", resource(name)))?,
        (None, DryRun::None) => print(&format!("{name}\n"))?,
        (None, DryRun::Client) => print(&format!("{} created (dry run)\n", resource(name)))?,
        (None, DryRun::Server) => print(&format!("{} created (server dry run)\n", resource(name)))?,
    }
    Ok(0)
}

async fn create(cluster: &Cluster, plan: &Plan) -> Result<RemoteProcess, Failure> {
    post(cluster, plan).await.map_err(|error| match &error {
        kube::Error::Api(status) if status.reason == "AlreadyExists" => {
            let name = plan.object.metadata.name.as_deref().unwrap_or_default();
            Failure::new(format!(
                "there is a process {name} in namespace {} already. See it: rproc logs {name}. Run it anew in its place: \
                 --replace",
                cluster.namespace
            ))
        }
        _ => {
            let rule = Rule::process("create", "remoteprocess-edit");
            cluster.error(&error, &rule, "create the process").into()
        }
    })
}

/// Creates the object. A field that the API server does not know is refused, as with kubectl.
async fn post(cluster: &Cluster, plan: &Plan) -> Result<RemoteProcess, kube::Error> {
    let params = PostParams {
        dry_run: plan.dry_run == DryRun::Server,
        field_manager: Some("rproc".into()),
    };
    let body = serde_json::to_vec(&plan.object).map_err(kube::Error::SerdeError)?;
    let request = Request::new(RemoteProcess::url_path(&(), Some(&cluster.namespace))).create(&params, body);
    let mut request = request.map_err(kube::Error::BuildRequest)?;
    let strict = format!("{}&fieldValidation=Strict", request.uri()).parse();
    *request.uri_mut() = strict.map_err(|error: http::uri::InvalidUri| kube::Error::HttpError(error.into()))?;
    cluster.client.request(request).await
}

async fn stream(
    relay: Relay,
    cluster: Arc<Cluster>,
    view: &ViewArgs,
    (created, is_named): (&RemoteProcess, bool),
    signals: Signals,
) -> Result<u8, Failure> {
    let name = created.metadata.name.as_deref().unwrap_or_default();
    let uid = created.metadata.uid.as_deref().unwrap_or_default();
    let form = Form::Bytes {
        is_stamped: view.timestamps,
    };
    let output = Output::standard(form, control(view))?;
    if !is_named && !view.quiet {
        output.line(&format!("{name} created")).await?;
    }
    let key = ProcessKey {
        namespace: cluster.namespace.clone(),
        name: name.to_owned(),
        uid: uid.to_owned(),
    };
    let next_attempt = NextAttempt {
        may_have_retries: created.spec.retries.is_some(),
        ..NextAttempt::new(&cluster, &key)
    };
    let mut follower = Follower {
        dial: relay.clone(),
        ledger: Ledger::new(Want {
            process: key.clone(),
            follow: true,
            ..Want::default()
        }),
        sink: output.clone(),
        progress: Messages::new(name, view.quiet, &output),
        unknown_until: Instant::now() + NEW_LIMIT,
    };
    say_how_to_leave(&output, name, &view.detach_keys, is_raw(view) && !view.quiet).await?;
    let leaving = leaving(relay, &cluster, view, &key, signals)?;
    let followed = match until_end(&mut follower, (Some(&next_attempt), view.quiet), leaving).await {
        Ok(followed) => followed,
        Err(left) => {
            output.answer_last(left.message.as_deref().unwrap_or_default()).await;
            record(&cluster, view, name, uid, None, &left)?;
            return Ok(left.code);
        }
    };
    let (exit, verdict) = conclude(&follower.ledger, name, followed)?;
    if let Some(message) = verdict.said(view.quiet) {
        output.line(message).await?;
    }
    record(&cluster, view, name, uid, exit.as_ref(), &verdict)?;
    output.flush().await?;
    match exit {
        Some(_) if view.rm => remove(&cluster, &output, name, uid).await?,
        // So that `rproc get` right after this shows the end.
        Some(_) => settle(&cluster, name, uid).await,
        None => {}
    }
    output.flush().await?;
    Ok(verdict.code)
}

/// Whether each key goes to the process.
fn is_raw(view: &ViewArgs) -> bool {
    view.tty && view.stdin && std::io::stdin().is_terminal()
}

/// How this terminal handles control sequences. All output is live, because it is followed from the beginning.
fn control(view: &ViewArgs) -> Control {
    match is_raw(view) {
        true => Control::Typed {
            live_from: Cursor::default(),
        },
        false if view.raw || view.tty => Control::Watched,
        false => Control::Shown,
    }
}

/// What may end following on this side.
fn leaving<'a>(
    relay: Relay,
    cluster: &'a Arc<Cluster>,
    view: &ViewArgs,
    key: &ProcessKey,
    signals: Signals,
) -> Result<Leaving<'a>, Failure> {
    let manner = Manner {
        tty: view.tty,
        detach_keys: view.detach_keys.clone(),
        take_over: false,
        redraw: false,
    };
    let interaction = match view.stdin {
        true => Interaction::start(relay, key.clone(), manner)?,
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
    view: &ViewArgs,
    name: &str,
    uid: &str,
    exit: Option<&Exit>,
    verdict: &Verdict,
) -> Result<(), Failure> {
    let Some(path) = &view.result_file else { return Ok(()) };
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
                .line(&cluster.explain(&error, &rule, "delete the process"))
                .await?;
        }
        Ok(_) => {}
    }
    Ok(())
}

/// Waits briefly until the status shows the end, too.
async fn settle(cluster: &Cluster, name: &str, uid: &str) {
    let deadline = Some(Instant::now() + STATUS_LAG);
    let is_told = |seen: &Seen| seen.has_ended().then_some(());
    // The end is known. A status that cannot be read, or is late, does not change it.
    let _ = observe::until(&cluster.processes(), name, Some(uid), deadline, is_told).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_has_the_size_and_type_of_yours_from_the_beginning() {
        let spec = |env: serde_json::Value| {
            let mut object = DynamicObject {
                types: None,
                metadata: kube::api::ObjectMeta::default(),
                data: json!({"spec": {"tty": true, "ttySize": {"rows": 1, "columns": 1}, "env": env}}),
            };
            look_like(
                &mut object,
                Some(WindowSize { rows: 50, columns: 132 }),
                Some("xterm-kitty"),
            );
            object.data["spec"].clone()
        };
        let bare = spec(json!([{"name": "A", "value": "1"}]));
        assert_eq!(bare["ttySize"], json!({"rows": 50, "columns": 132}));
        assert_eq!(bare["env"][1], json!({"name": "TERM", "value": "xterm-256color"}));
        let given = json!([{"name": "TERM", "value": "vt100"}]);
        assert_eq!(spec(given.clone())["env"], given);
    }

    #[test]
    fn the_trace_of_the_caller_is_continued() {
        let annotation = |own: Option<&str>, callers: &str| {
            let own = own.map(|own| [(names::ANNOTATION_TRACEPARENT.to_owned(), own.to_owned())].into());
            let mut object = DynamicObject {
                types: None,
                metadata: kube::api::ObjectMeta {
                    annotations: own,
                    ..Default::default()
                },
                data: json!({}),
            };
            continue_trace(&mut object, Some(callers));
            object.metadata.annotations.unwrap_or_default().into_values().next()
        };
        let callers = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        assert_eq!(annotation(None, callers).as_deref(), Some(callers));
        assert_eq!(annotation(Some("own"), callers).as_deref(), Some("own"));
        for other in [
            "",
            "00-1-2-01",
            &callers.to_uppercase(),
            &callers.replacen("00", "ff", 1),
        ] {
            assert_eq!(annotation(None, other), None, "{other}");
        }
    }
}
