//! Completion while you type: commands, flags and fixed values from the parser, names from the API server.
//!
//! Invariant: it never disturbs the line that you type. It ends within [`LIMIT`], prints candidates or nothing, and no
//! credential plugin can reach the terminal.

use std::ffi::{OsStr, OsString};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use clap::{Arg, ArgMatches};
use clap_complete::engine::{ArgValueCompleter, CompletionCandidate, complete};
use k8s_openapi::api::core::v1::Namespace;
use kube::Api;
use kube::api::ListParams;
use kube::core::{DynamicObject, PartialObjectMeta};
use remoteprocess_api::signal::SIGNALS;
use remoteprocess_api::{Phase, status::RemoteProcessStatus};
use remoteprocess_client::{Cluster, ClusterOptions};
use strum::VariantNames;

use crate::args::{given, process_name, sink_name, trigger_name};
use crate::command;
use crate::command::completion::WORD;
use crate::command::sink::sinks;
use crate::command::trigger::triggers;
use crate::command::wait;
use crate::config;

/// The name under which kubectl asks for the candidates of `kubectl rproc`.
const KUBECTL: &str = "kubectl_complete-rproc";

/// The longest time from the key to the candidates.
const LIMIT: Duration = Duration::from_secs(2);
/// Most names that are offered.
const MAX_NAMES: usize = 200;
/// Names in one answer of the API server.
const PAGE: u32 = 500;
/// Most answers that are read: one namespace may hold very many processes.
const MAX_PAGES: usize = 8;

/// How the candidates are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reader {
    /// bash: values only.
    Values,
    /// zsh: a colon before the description.
    Zsh,
    /// fish and PowerShell: a tab before the description.
    Tab,
    /// kubectl: a tab, and at the end what cobra calls a directive.
    Kubectl,
}

/// The candidates for a command line, if that is what we were called for.
pub fn answer(arguments: &[OsString]) -> Option<String> {
    let (reader, words) = asked(arguments)?;
    // In our session, a credential plugin could read the terminal, or write to it.
    if rustix::process::setsid().is_err() {
        return Some(in_child(arguments).unwrap_or_default());
    }
    let (sender, receiver) = mpsc::sync_channel(1);
    std::thread::spawn(move || sender.send(candidates(words)));
    let found = receiver.recv_timeout(LIMIT).unwrap_or_default();
    Some(written(reader, &found))
}

/// The answer of a child, which can leave the session: unlike us, it leads no process group.
fn in_child(arguments: &[OsString]) -> std::io::Result<String> {
    let mut child = Command::new(std::env::current_exe()?);
    let found = child
        .arg0(&arguments[0])
        .args(&arguments[1..])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()?;
    Ok(String::from_utf8_lossy(&found.stdout).into_owned())
}

/// Who asks, and the words of the command line; the first one is the program.
fn asked(arguments: &[OsString]) -> Option<(Reader, Vec<OsString>)> {
    let (program, rest) = arguments.split_first()?;
    if command::is_called(program, KUBECTL) {
        let words = std::iter::once("kubectl-rproc".into()).chain(rest.iter().cloned());
        return Some((Reader::Kubectl, words.collect()));
    }
    let (shell, words) = rest.strip_prefix(&[WORD.into()])?.split_first()?;
    let reader = match shell.to_str()? {
        "zsh" => Reader::Zsh,
        "fish" | "powershell" => Reader::Tab,
        _ => Reader::Values,
    };
    (words.len() > 1).then(|| (reader, words.to_vec()))
}

fn candidates(words: Vec<OsString>) -> Vec<CompletionCandidate> {
    let Some((current, earlier)) = words.split_last() else {
        return Vec::new();
    };
    let is_flag = current.to_string_lossy().starts_with('-');
    let line = Arc::new(Line::read(earlier));
    let mut parser = with_completers(command::parser(words.first().map(OsString::as_os_str)), &line);
    let index = earlier.len();
    let here = std::env::current_dir().ok();
    let mut found = complete(&mut parser, words, index, here.as_deref()).unwrap_or_default();
    // Flags are offered where a `-` asks for them, or where there is nothing else.
    let is_value = |candidate: &CompletionCandidate| !candidate.get_value().to_string_lossy().starts_with('-');
    if !is_flag && found.iter().any(is_value) {
        found.retain(is_value);
    }
    found
}

fn written(reader: Reader, found: &[CompletionCandidate]) -> String {
    let mut text = String::new();
    for candidate in found {
        let value = candidate.get_value().to_string_lossy();
        let help = candidate.get_help().map(ToString::to_string).unwrap_or_default();
        let help = help.lines().next().unwrap_or_default();
        // A value with a control character cannot be typed, and would break the lines.
        if value.chars().any(char::is_control) {
            continue;
        }
        match reader {
            Reader::Values => text.push_str(&value),
            Reader::Zsh if help.is_empty() => text.push_str(&value.replace(':', "\\:")),
            Reader::Zsh => text.push_str(&format!("{}:{help}", value.replace(':', "\\:"))),
            Reader::Tab | Reader::Kubectl if help.is_empty() => text.push_str(&value),
            Reader::Tab | Reader::Kubectl => text.push_str(&format!("{value}\t{help}")),
        }
        text.push('\n');
    }
    if reader == Reader::Kubectl {
        // cobra's directives: 2 adds no space, 4 offers no files of the working directory.
        let is_open = |candidate: &CompletionCandidate| candidate.get_value().to_string_lossy().ends_with(['=', '/']);
        let directive = if found.iter().any(is_open) { 6 } else { 4 };
        text.push_str(&format!(":{directive}\n"));
    }
    text
}

/// Puts the completers of names and values on the arguments of all commands.
fn with_completers(parser: clap::Command, line: &Arc<Line>) -> clap::Command {
    let mut parser = parser.mut_args(|argument| with_completer(argument, line, ""));
    for verb in verbs(&parser) {
        parser = parser.mut_subcommand(&verb, |command| {
            let mut command = command.mut_args(|argument| with_completer(argument, line, &verb));
            // `rproc trigger describe NAME`.
            for inner in verbs(&command) {
                command = command.mut_subcommand(&inner, |command| {
                    command.mut_args(|argument| with_completer(argument, line, &verb))
                });
            }
            command
        });
    }
    parser
}

fn verbs(command: &clap::Command) -> Vec<String> {
    let verbs = command.get_subcommands();
    verbs.map(|verb| verb.get_name().to_owned()).collect()
}

fn with_completer(argument: Arg, line: &Arc<Line>, verb: &str) -> Arg {
    let is_signal = argument
        .get_value_names()
        .is_some_and(|names| names.iter().any(|name| *name == "SIGNAL"));
    let kind = match argument.get_id().as_str() {
        _ if is_signal => Kind::Signal,
        "name" | "names" if argument.is_positional() && verb == "trigger" => Kind::Trigger,
        "name" | "names" if argument.is_positional() && verb == "sink" => Kind::Sink,
        // A new process needs a new name.
        "name" | "names" if argument.is_positional() && verb != "run" => Kind::Process {
            is_running: ["stop", "pause", "resume", "attach", "exec", "signal", "extend"].contains(&verb),
        },
        "namespace" | "operator_namespace" => Kind::Namespace,
        "context" => Kind::Context,
        "attempt" => Kind::Attempt,
        "goal" => Kind::Goal,
        "field_selector" => Kind::Field,
        _ => return argument,
    };
    let line = line.clone();
    argument.add(ArgValueCompleter::new(move |current: &OsStr| {
        current
            .to_str()
            .map(|current| line.candidates(kind, current))
            .unwrap_or_default()
    }))
}

/// What an argument takes.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Process { is_running: bool },
    Trigger,
    Sink,
    Namespace,
    Context,
    Attempt,
    Signal,
    Goal,
    Field,
}

/// What the words before the cursor say.
struct Line {
    options: ClusterOptions,
    /// Processes that are named.
    names: Vec<String>,
}

impl Line {
    /// Reads the words as far as they are understood: the line is not finished.
    fn read(words: &[OsString]) -> Self {
        // With wrong settings, the command itself reports them.
        let parser = config::parser(words).unwrap_or_else(|_| command::parser(None));
        let parser = parser.ignore_errors(true);
        let found = parser.try_get_matches_from(words).unwrap_or_default();
        let text = |id: &str| given(value::<String>(&found, id).first().map(String::as_str));
        let verb = found.subcommand().map(|(_, verb)| verb);
        // `rproc trigger describe NAME` has its names one level deeper.
        let verb = verb.map(|verb| verb.subcommand().map_or(verb, |(_, inner)| inner));
        let named = |id: &str| verb.map(|verb| value::<String>(verb, id)).unwrap_or_default();
        Self {
            options: ClusterOptions {
                namespace: text("namespace"),
                context: text("context"),
                kubeconfig: value(&found, "kubeconfig").pop(),
                impersonate: text("impersonate"),
                impersonate_groups: value(&found, "impersonate_groups"),
                is_unattended: true,
                ..ClusterOptions::default()
            },
            names: [named("name"), named("names")].concat(),
        }
    }

    fn candidates(&self, kind: Kind, current: &str) -> Vec<CompletionCandidate> {
        let begins = |value: &String| value.starts_with(current);
        let fixed: Vec<String> = match kind {
            Kind::Signal => return signals(current),
            Kind::Goal => wait::goals().collect(),
            Kind::Field => fields(current),
            Kind::Context => Cluster::contexts(&self.options).unwrap_or_default(),
            Kind::Process { .. } | Kind::Trigger | Kind::Sink | Kind::Namespace | Kind::Attempt => {
                return self.live(kind, current);
            }
        };
        fixed.into_iter().filter(begins).map(CompletionCandidate::new).collect()
    }

    /// Asks the API server. An answer that is no list of names is no help to a user who types: it is dropped.
    fn live(&self, kind: Kind, current: &str) -> Vec<CompletionCandidate> {
        let Ok(runtime) = crate::runtime() else {
            return Vec::new();
        };
        let found = runtime.block_on(async {
            let cluster = Cluster::open(&self.options).await.ok()?;
            match kind {
                Kind::Namespace => {
                    let found = names(&Api::<Namespace>::all(cluster.client), &ListParams::default(), current).await;
                    Some(found.into_iter().map(CompletionCandidate::new).collect())
                }
                Kind::Attempt => attempts(&cluster, self.names.first()?, current).await,
                Kind::Process { is_running } => Some(self.processes(&cluster, is_running, current).await),
                Kind::Trigger => Some(self.all(&triggers(&cluster), trigger_name, current).await),
                Kind::Sink => Some(self.all(&sinks(&cluster), sink_name, current).await),
                Kind::Context | Kind::Signal | Kind::Goal | Kind::Field => None,
            }
        });
        // A name that is still being resolved is not waited for.
        runtime.shutdown_background();
        found.unwrap_or_default()
    }

    async fn processes(&self, cluster: &Cluster, is_running: bool, current: &str) -> Vec<CompletionCandidate> {
        let params = match is_running {
            true => ListParams::default().fields("status.phase!=Succeeded,status.phase!=Failed"),
            false => ListParams::default(),
        };
        self.objects(&cluster.objects(false), &params, process_name, current)
            .await
    }

    async fn all<K>(
        &self,
        api: &Api<K>,
        parse: fn(&str) -> Result<String, String>,
        current: &str,
    ) -> Vec<CompletionCandidate>
    where
        K: Clone + serde::de::DeserializeOwned + std::fmt::Debug,
    {
        self.objects(api, &ListParams::default(), parse, current).await
    }

    /// The objects that are not named yet.
    async fn objects<K>(
        &self,
        api: &Api<K>,
        params: &ListParams,
        parse: fn(&str) -> Result<String, String>,
        current: &str,
    ) -> Vec<CompletionCandidate>
    where
        K: Clone + serde::de::DeserializeOwned + std::fmt::Debug,
    {
        // TYPE/NAME is a name as well.
        let (kind, current) = current.split_at(current.find('/').map_or(0, |slash| slash + 1));
        if !kind.is_empty() && parse(&format!("{kind}x")).is_err() {
            return Vec::new();
        }
        let mut found = names(api, params, current).await;
        found.retain(|name| !self.names.contains(name));
        found
            .into_iter()
            .map(|name| CompletionCandidate::new(format!("{kind}{name}")))
            .collect()
    }
}

/// The values of an argument, if it was given and understood.
fn value<T: Clone + Send + Sync + 'static>(found: &ArgMatches, id: &str) -> Vec<T> {
    let values = found.try_get_many::<T>(id).ok().flatten();
    values.into_iter().flatten().cloned().collect()
}

/// The names that begin like this, page by page.
async fn names<K>(api: &Api<K>, params: &ListParams, begin: &str) -> Vec<String>
where
    K: Clone + serde::de::DeserializeOwned + std::fmt::Debug,
{
    let mut found = Vec::new();
    let mut params = params.clone().limit(PAGE);
    for _ in 0..MAX_PAGES {
        let Ok(list) = api.list_metadata(&params).await else {
            break;
        };
        let name = |object: PartialObjectMeta<K>| object.metadata.name;
        let names = list.items.into_iter().filter_map(name);
        found.extend(names.filter(|name| name.starts_with(begin)));
        let next = list.metadata.continue_.filter(|next| !next.is_empty());
        let Some(next) = next.filter(|_| found.len() < MAX_NAMES) else {
            break;
        };
        params = params.continue_token(&next);
    }
    found.truncate(MAX_NAMES);
    found
}

/// The attempts of a process, and how each one ended.
async fn attempts(cluster: &Cluster, name: &str, current: &str) -> Option<Vec<CompletionCandidate>> {
    let object: DynamicObject = cluster.objects(false).get_opt(name).await.ok()??;
    let status: RemoteProcessStatus = serde_json::from_value(object.data.get("status")?.clone()).ok()?;
    let last = status.current_attempt()?;
    let first = last.saturating_sub(u32::try_from(MAX_NAMES).unwrap_or(u32::MAX)) + 1;
    let numbers = (first..=last).filter(|number| number.to_string().starts_with(current));
    let candidate = |number: u32| {
        let reason = status.attempt(number).and_then(|attempt| attempt.exit.as_ref()?.reason);
        CompletionCandidate::new(number.to_string()).help(reason.map(|reason| reason.to_string().into()))
    };
    Some(numbers.map(candidate).collect())
}

/// `HUP`, or `SIGHUP` where you begin like that; in any case.
fn signals(current: &str) -> Vec<CompletionCandidate> {
    let begin = current.to_ascii_uppercase();
    let is_long = begin.starts_with("SIG");
    let name = |name: &'static str| if is_long { name } else { &name[3..] };
    SIGNALS
        .iter()
        .filter(|(known, _)| name(known).starts_with(&begin))
        .map(|(known, number)| CompletionCandidate::new(name(known)).help(Some(number.to_string().into())))
        .collect()
}

/// Fields that select processes; the phases after `status.phase=`.
fn fields(current: &str) -> Vec<String> {
    let (earlier, current) = current.split_at(current.rfind(',').map_or(0, |comma| comma + 1));
    let phase = current
        .strip_prefix("status.phase")
        .map(|rest| if rest.starts_with("!=") { "!=" } else { "=" });
    let known: Vec<String> = match phase {
        Some(sign) if current.contains('=') => {
            let phases = Phase::VARIANTS.iter();
            phases.map(|phase| format!("status.phase{sign}{phase}")).collect()
        }
        _ => ["metadata.name=", "status.phase=", "status.reason="]
            .map(str::to_owned)
            .into(),
    };
    known.into_iter().map(|field| format!("{earlier}{field}")).collect()
}
