//! The command line, as it is written.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use clap::builder::{OsStringValueParser, TypedValueParser};
use clap::{CommandFactory, Parser, Subcommand};
use remoteprocess_api::{identifier, names};
use remoteprocess_client::ClusterOptions;
use remoteprocess_client::cluster::namespace_name;

use crate::command::{
    attach, completion, delete, describe, exec, extend, get, login, logs, pause, rerun, run, signal, stop, version,
    wait, whoami,
};
use crate::output::complain;

/// Runs commands in pods and never loses a byte or an exit code.
///
/// A RemoteProcess is a command that runs once in a pod. rproc creates it, streams its output and exits with its exit
/// code; cut connections are resumed where they broke.
#[derive(Debug, Parser)]
#[command(name = "rproc", version, propagate_version = true, after_help = EXIT_CODES, arg_required_else_help = true)]
pub struct Cli {
    /// Where and as whom.
    #[command(flatten)]
    pub global: GlobalArgs,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

const EXIT_CODES: &str = "Exit codes of run, logs and exec:
  the program's own; 128 + n where signal n ended it; 125 where it is not known
  or rproc itself failed, with a sentence that begins with \"rproc:\".";

/// One verb each.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a command in a new pod and stream its output
    Run(Box<run::RunArgs>),
    /// Run a process once more, with the same specification
    Rerun(rerun::RerunArgs),
    /// Print the output of a process, before, during and after its pod's life
    Logs(logs::LogsArgs),
    /// Connect to a running process, to watch it or to work in it
    Attach(attach::AttachArgs),
    /// Run a further command in the container of a process that runs
    Exec(exec::ExecArgs),
    /// Ask processes to end, and wait until they have
    Stop(stop::StopArgs),
    /// Freeze processes
    #[command(after_help = pause::PAUSE_EXAMPLES)]
    Pause(pause::PauseArgs),
    /// Let paused processes run again
    #[command(after_help = pause::RESUME_EXAMPLES)]
    Resume(pause::PauseArgs),
    /// Give processes more time to run
    Extend(extend::ExtendArgs),
    /// Send a signal to a process
    Signal(signal::SignalArgs),
    /// List processes
    #[command(visible_alias = "ps")]
    Get(get::GetArgs),
    /// Show everything that is known about a process
    Describe(describe::DescribeArgs),
    /// Wait until processes have reached a state
    Wait(wait::WaitArgs),
    /// Delete processes, ending those that run
    Delete(delete::DeleteArgs),
    /// Get a new client certificate now
    Login(login::LoginArgs),
    /// Show who you are and how the relay is reached
    Whoami(whoami::WhoamiArgs),
    /// Print the versions of client, operator and Kubernetes
    Version(version::VersionArgs),
    /// Print the flags that each verb takes
    Options,
    /// Print a completion script for a shell
    Completion(completion::CompletionArgs),
}

/// The name of a process on the command line: `job`, or as it is printed: `remoteprocess.remoteprocess.dev/job`.
///
/// A name becomes a part of a path. Nothing else than a name of the Kubernetes API may get there: `#`, `?`, `%` and `/`
/// would make another request of it.
///
/// # Errors
/// The text cannot be the name of a process.
pub fn process_name(text: &str) -> Result<String, String> {
    let name = match text.split_once('/') {
        None => text,
        Some((kind, name)) => {
            let (kind, group) = kind.split_once('.').unwrap_or((kind, names::GROUP));
            let is_ours = ["remoteprocess", "remoteprocesses", "rproc"].contains(&kind) && group == names::GROUP;
            if !is_ours {
                return Err(format!(
                    "{kind:?} is not the type of a process: use NAME or remoteprocess/NAME"
                ));
            }
            name
        }
    };
    if !identifier::is_name(name) {
        return Err(
            "no process can have this name: a name has lowercase letters, digits, '-' and '.', begins and ends \
                    with a letter or a digit, and is at most 253 bytes long"
                .to_owned(),
        );
    }
    Ok(name.to_owned())
}

/// The name of another object on the command line, a ServiceAccount, say.
///
/// # Errors
/// The text cannot be a name.
pub fn object_name(text: &str) -> Result<String, String> {
    match identifier::is_name(text) {
        true => Ok(text.to_owned()),
        false => Err("no object can have this name".to_owned()),
    }
}

/// The uid of an object on the command line. An empty one counts as absent.
///
/// # Errors
/// The text cannot be a uid.
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
    /// Group to impersonate; may be given more than once
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
}

impl GlobalArgs {
    /// The same for the library.
    #[must_use]
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
        }
    }
}

/// What a flag was given; an empty value counts as absent, as in kubectl.
#[must_use]
pub fn given(value: Option<&str>) -> Option<String> {
    value.filter(|value| !value.is_empty()).map(str::to_owned)
}

/// The parser, under the name by which it was called: kubectl runs `kubectl-rproc` for `kubectl rproc`.
#[must_use]
pub fn parser(called_as: Option<&OsStr>) -> clap::Command {
    let mut parser = Cli::command();
    for name in parser
        .get_subcommands()
        .map(|verb| verb.get_name().to_owned())
        .collect::<Vec<_>>()
    {
        parser = parser.mut_subcommand(name, with_pointer);
    }
    let parser = with_pointer(parser).mut_args(|argument| {
        let is_global = argument.is_global_set();
        argument.hide_short_help(is_global).hide_long_help(is_global)
    });
    if is_plugin(called_as) {
        parser.bin_name("kubectl rproc").display_name("kubectl rproc")
    } else {
        parser
    }
}

/// The global options have a page of their own, as kubectl's.
fn with_pointer(command: clap::Command) -> clap::Command {
    const POINTER: &str = "Use \"rproc options\" for the options that every command takes.";
    let text = match command.get_after_help() {
        Some(text) => format!("{text}\n\n{POINTER}"),
        None => POINTER.to_owned(),
    };
    command.after_help(text)
}

/// The page of the options that every verb takes.
#[must_use]
pub fn options() -> String {
    let options = Cli::command();
    let shown = options
        .get_arguments()
        .filter(|argument| argument.is_global_set())
        .cloned();
    let mut page = clap::Command::new("rproc")
        .disable_help_flag(true)
        .help_template("{all-args}\n")
        .args(shown);
    page.render_help().to_string()
}

/// Whether we run as a plugin of kubectl.
#[must_use]
pub fn is_plugin(called_as: Option<&OsStr>) -> bool {
    called_as
        .and_then(|path| Path::new(path).file_name())
        .is_some_and(|name| name == "kubectl-rproc")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_is_sound() {
        parser(None).debug_assert();
    }

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
        for text in ["a.b", "a/b", "#", "A"] {
            assert!(namespace_name(text).is_err(), "{text:?}");
        }
        assert!(uid("../x").is_err() && uid("a?b").is_err() && uid("0b6f-1").is_ok());
    }

    /// Each verb that takes a name refuses one that would change the request, before anything is asked.
    #[test]
    fn delete_of_a_name_with_a_number_sign_deletes_nothing() {
        let mut tried = 0;
        for verb in parser(None).get_subcommands() {
            let is_name = |argument: &clap::Arg| ["name", "names"].contains(&argument.get_id().as_str());
            if !verb.get_positionals().any(is_name) {
                continue;
            }
            for odd in ["#3", "?", "job?", "a1?dryRun=All", "../x"] {
                let mut words = vec!["rproc", verb.get_name(), odd];
                match verb.get_name() {
                    "run" => words.extend(["--image", "i", "--", "x"]),
                    "exec" => words.extend(["--", "x"]),
                    "signal" => words.push("HUP"),
                    "extend" => words.extend(["--by", "1h"]),
                    "wait" => words.extend(["--for", "sealed"]),
                    _ => {}
                }
                let refused = parser(None).try_get_matches_from(&words);
                let refused = refused.err().unwrap_or_else(|| panic!("{words:?} is taken"));
                assert_eq!(
                    refused.kind(),
                    clap::error::ErrorKind::ValueValidation,
                    "{words:?}: {refused}"
                );
                tried += 1;
            }
        }
        assert!(tried >= 12 * 5, "{tried}");
    }

    #[test]
    fn the_options_of_every_verb_have_one_page() {
        let page = options();
        for option in [
            "--namespace",
            "--context",
            "--kubeconfig",
            "--as ",
            "--as-group",
            "--server",
            "--operator-namespace",
        ] {
            assert!(page.contains(option), "{page}");
        }
        for verb in parser(None).get_subcommands_mut() {
            let help = verb.render_long_help().to_string();
            assert!(help.contains("rproc options") && !help.contains("--as-group"), "{help}");
        }
    }

    #[test]
    fn help_texts() {
        let mut parser = parser(None).term_width(80);
        parser.build();
        insta::assert_snapshot!("rproc", parser.render_help());
        for verb in parser.get_subcommands_mut() {
            let name = verb.get_name().to_owned();
            if name != "help" {
                insta::assert_snapshot!(name, verb.clone().term_width(80).render_help());
            }
        }
    }

    #[test]
    fn the_plugin_calls_itself_as_it_is_called() {
        let mut parser = parser(Some(OsStr::new("/usr/local/bin/kubectl-rproc")));
        assert!(parser.render_usage().to_string().contains("kubectl rproc"));
    }
}
