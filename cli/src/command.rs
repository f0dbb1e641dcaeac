//! The commands, one file each: the command line, and which function runs it.

use std::ffi::OsStr;
use std::path::Path;

use clap::{CommandFactory, Parser, Subcommand};

use crate::args::GlobalArgs;
use crate::failure::Failure;
use crate::output;
use crate::print::print;

pub mod admin;
pub mod attach;
mod bridged;
pub mod changes;
pub mod completion;
pub mod delete;
pub mod describe;
pub mod doctor;
pub mod events;
pub mod exec;
pub mod extend;
pub mod follow;
pub mod get;
pub mod launch;
pub mod login;
pub mod logs;
pub mod man;
pub mod next_attempt;
pub mod pause;
pub mod proxy;
pub mod rerun;
pub mod run;
pub mod selection;
pub mod signal;
pub mod sink;
pub mod stop;
pub mod support_bundle;
pub mod top;
pub mod trigger;
pub mod ui;
pub mod update;
pub mod version;
pub mod wait;
pub mod whoami;

/// Runs commands in pods and never loses a byte or an exit code.
///
/// A RemoteProcess is a command that runs once in a pod. rproc creates it, streams its output and exits with its exit
/// code; cut connections are resumed where they broke.
#[derive(Debug, Parser)]
#[command(name = "rproc", version, propagate_version = true, after_help = EXIT_CODES)]
pub struct Cli {
    /// Which cluster, and as which user.
    #[command(flatten)]
    pub global: GlobalArgs,
    /// The command.
    #[command(subcommand)]
    pub command: Command,
}

const EXIT_CODES: &str = "Exit codes of run, attach, logs and exec:
  that of the program; 128 + n if signal n ended it; 124 after a deadline; 143
  if it was stopped and exited with 0; 125 if the exit code is not known, output
  is missing, or rproc failed, with a message that begins with \"rproc:\".";

/// All commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a command in a new pod and stream its output
    Run(Box<run::RunArgs>),
    /// Run a process again, with the same spec
    Rerun(rerun::RerunArgs),
    /// Print the output of a process, also after its pod is gone
    Logs(logs::LogsArgs),
    /// Connect to a running process, to watch it or to type into it
    Attach(attach::AttachArgs),
    /// Run another command in the container of a running process
    Exec(exec::ExecArgs),
    /// Stop processes and wait until they have ended
    Stop(stop::StopArgs),
    /// Pause processes
    #[command(after_help = pause::PAUSE_EXAMPLES)]
    Pause(pause::PauseArgs),
    /// Resume paused processes
    #[command(after_help = pause::RESUME_EXAMPLES)]
    Resume(pause::PauseArgs),
    /// Give processes more time to run
    Extend(extend::ExtendArgs),
    /// Send a signal to a process
    Signal(signal::SignalArgs),
    /// List processes
    #[command(visible_alias = "ps")]
    Get(get::GetArgs),
    /// Show the details of processes
    Describe(describe::DescribeArgs),
    /// List the Events of processes and of their pods
    Events(events::EventsArgs),
    /// Show what running processes use and write at the moment
    Top(top::TopArgs),
    /// Wait until processes reach a state
    Wait(wait::WaitArgs),
    /// Delete processes; running ones are ended first
    Delete(delete::DeleteArgs),
    /// List, describe and test the triggers that make processes of messages
    Trigger(trigger::TriggerArgs),
    /// List and describe the sinks that send events about processes
    Sink(sink::SinkArgs),
    /// Get a new client certificate now
    Login(login::LoginArgs),
    /// Show who you are and how rproc reaches the relay
    Whoami(whoami::WhoamiArgs),
    /// Administer the installation
    Admin(admin::AdminArgs),
    /// Check the installation and the way to it, with a fix for each problem
    Doctor(doctor::DoctorArgs),
    /// Show processes and their output in a browser
    Ui(ui::UiArgs),
    /// Serve HTTP/JSON of the relay on this machine
    Proxy(proxy::ProxyArgs),
    /// Write a file with what is needed to find a fault, without secrets
    SupportBundle(support_bundle::SupportBundleArgs),
    /// Print the versions of rproc, the operator and Kubernetes
    Version(version::VersionArgs),
    /// Print the flags that all commands take
    Options,
    /// Print a completion script for a shell
    Completion(completion::CompletionArgs),
    /// Write the man pages into a directory
    #[command(hide = true)]
    Man(man::ManArgs),
}

/// Runs the command and returns the exit code.
pub async fn run(cli: Cli) -> u8 {
    match dispatch(cli).await {
        Ok(code) => code,
        Err(failure) => {
            // If standard error is closed as well, only the exit code can report the failure.
            output::complain(&failure.text);
            failure.code
        }
    }
}

async fn dispatch(cli: Cli) -> Result<u8, Failure> {
    let global = &cli.global;
    match cli.command {
        Command::Run(args) => run::run(global, *args).await,
        Command::Rerun(args) => rerun::run(global, args).await,
        Command::Attach(args) => attach::run(global, args).await,
        Command::Exec(args) => exec::run(global, args).await,
        Command::Logs(args) => logs::run(global, args).await,
        Command::Stop(args) => stop::run(global, args).await,
        Command::Pause(args) => pause::run(global, args, pause::Verb::Pause).await,
        Command::Resume(args) => pause::run(global, args, pause::Verb::Resume).await,
        Command::Extend(args) => extend::run(global, args).await,
        Command::Signal(args) => signal::run(global, args).await,
        Command::Get(args) => get::run(global, args).await,
        Command::Describe(args) => describe::run(global, args).await,
        Command::Events(args) => events::run(global, args).await,
        Command::Wait(args) => wait::run(global, args).await,
        Command::Delete(args) => delete::run(global, args).await,
        Command::Trigger(args) => trigger::run(global, args).await,
        Command::Sink(args) => sink::run(global, args).await,
        Command::Login(args) => login::run(global, args).await,
        Command::Whoami(args) => whoami::run(global, args).await,
        Command::Admin(args) => admin::run(global, args).await,
        Command::Doctor(args) => doctor::run(global, args).await,
        Command::Ui(args) => ui::run(global, args).await,
        Command::Proxy(args) => proxy::run(global, args).await,
        Command::SupportBundle(args) => support_bundle::run(global, args).await,
        Command::Top(args) => top::run(global, args).await,
        Command::Man(args) => man::run(&args, parser(None)),
        Command::Version(args) => version::run(global, args).await,
        Command::Options => print(&options()).map(|()| 0),
        Command::Completion(args) => {
            let called_as = std::env::args_os().next();
            let name = match is_plugin(called_as.as_deref()) {
                true => "kubectl-rproc",
                false => "rproc",
            };
            completion::run(args, &mut parser(None), name)
        }
    }
}

/// The parser, with the name by which it was called: kubectl runs `kubectl-rproc` for `kubectl rproc`.
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

/// Points to the page of global options, as kubectl does.
fn with_pointer(command: clap::Command) -> clap::Command {
    const POINTER: &str = "Use \"rproc options\" for the options that every command takes.";
    let text = match command.get_after_help() {
        Some(text) => format!("{text}\n\n{POINTER}"),
        None => POINTER.to_owned(),
    };
    command.after_help(text)
}

/// The page of the options that all commands take.
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

/// Whether this program runs as a plugin of kubectl.
pub fn is_plugin(called_as: Option<&OsStr>) -> bool {
    called_as.is_some_and(|path| is_called(path, "kubectl-rproc"))
}

/// Whether a program of this path has this name.
pub(crate) fn is_called(path: &OsStr, name: &str) -> bool {
    Path::new(path).file_name().is_some_and(|found| found == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_is_sound() {
        parser(None).debug_assert();
    }

    #[test]
    fn the_readme_names_every_verb() {
        let readme = include_str!("../../README.md");
        for verb in parser(None).get_subcommands().filter(|verb| !verb.is_hide_set()) {
            let name = verb.get_name();
            let is_named = [format!("`{name}`"), format!("`{name} "), format!("`rproc {name}`")]
                .iter()
                .any(|form| readme.contains(form));
            assert!(is_named, "{name}");
        }
    }

    /// Each command that takes a name refuses one that would change the request, before it sends anything.
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
    fn a_trigger_or_a_sink_of_an_odd_name_is_asked_nothing() {
        let verbs = [
            "trigger ls",
            "trigger get",
            "trigger list",
            "trigger describe",
            "trigger test",
        ];
        for verb in verbs
            .into_iter()
            .chain(["sink ls", "sink get", "sink list", "sink describe"])
        {
            for odd in ["#3", "?", "a1?dryRun=All", "../x", "rproc/x"] {
                let refused =
                    parser(None).try_get_matches_from(["rproc"].into_iter().chain(verb.split(' ')).chain([odd]));
                let refused = refused.err().unwrap_or_else(|| panic!("{verb} {odd} is taken"));
                assert_eq!(refused.kind(), clap::error::ErrorKind::ValueValidation, "{refused}");
            }
        }
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
                insta::assert_snapshot!(name.clone(), verb.clone().term_width(80).render_help());
            }
            if ["trigger", "sink"].contains(&name.as_str()) {
                for inner in verb.get_subcommands_mut().filter(|inner| inner.get_name() != "help") {
                    let name = format!("{name}-{}", inner.get_name());
                    insta::assert_snapshot!(name, inner.clone().term_width(80).render_help());
                }
            }
        }
    }

    #[test]
    fn the_plugin_calls_itself_as_it_is_called() {
        let mut parser = parser(Some(OsStr::new("/usr/local/bin/kubectl-rproc")));
        assert!(parser.render_usage().to_string().contains("kubectl rproc"));
    }
}
