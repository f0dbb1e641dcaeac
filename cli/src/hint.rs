//! Suggests what to type for words of other tools. The list is written by hand, because a guess by similarity may do
//! harm (`top`, `stop`).

use std::ffi::OsString;

use clap::error::{ContextKind, ContextValue, ErrorKind};

/// A hint for an error in the arguments, if the intention is known.
pub fn hint(arguments: &[OsString], usage: &clap::Error) -> Option<String> {
    let words: Vec<&str> = arguments.iter().skip(1).map_while(|word| word.to_str()).collect();
    let text = |kind| match usage.get(kind) {
        Some(ContextValue::String(text)) => Some(text.as_str()),
        _ => None,
    };
    let known = match usage.kind() {
        ErrorKind::InvalidSubcommand => text(ContextKind::InvalidSubcommand).and_then(verb),
        ErrorKind::UnknownArgument => text(ContextKind::InvalidArg).and_then(flag),
        _ => None,
    };
    known.map(str::to_owned).or_else(|| command(&words, usage))
}

fn verb(word: &str) -> Option<&'static str> {
    Some(match word {
        "ls" | "list" | "pods" | "jobs" => "list processes: rproc ps",
        "rm" | "remove" | "destroy" => "delete a process: rproc delete NAME",
        "kill" => "end a process: rproc stop NAME; only send a signal: rproc signal NAME KILL",
        "cancel" | "abort" | "terminate" | "end" => "end a process: rproc stop NAME",
        "status" | "inspect" | "show" | "info" => "see everything about a process: rproc describe NAME",
        "start" | "create" | "submit" | "exec-new" => "create a process: rproc run --image IMAGE -- COMMAND",
        "restart" | "retry" | "re-run" => "run a process once more: rproc rerun NAME",
        "apply" => "create the process of a file: rproc run -f FILE, or kubectl apply -f FILE",
        "edit" | "patch" | "scale" => {
            "change a process: kubectl edit remoteprocess NAME; its deadline: rproc extend NAME"
        }
        "log" | "tail" | "output" => "see the output: rproc logs -f NAME",
        "sh" | "shell" | "ssh" | "bash" | "debug" => "get a shell in a process: rproc exec -it NAME -- sh",
        "watch" => "see each change: rproc ps -w; the output: rproc attach NAME",
        "suspend" | "freeze" => "freeze a process: rproc pause NAME",
        "unpause" | "continue" | "cont" | "thaw" => "let a paused process run again: rproc resume NAME",
        "stats" => "see what processes use: rproc top",
        "bundle" | "support" => "collect what is needed to find a fault: rproc support-bundle",
        "cp" | "copy" => {
            "copy a file out: rproc exec NAME -- cat FILE > FILE; in: rproc exec -i NAME -- sh -c 'cat > FILE' < FILE"
        }
        "port-forward" => "forward a port: kubectl port-forward POD PORT; rproc describe NAME has the name of the pod",
        "auth" | "who" => "see who you are: rproc whoami",
        _ => return None,
    })
}

fn flag(word: &str) -> Option<&'static str> {
    Some(match word.split('=').next().unwrap_or(word) {
        "--name" => "the name is an argument, not a flag: rproc run NAME --image IMAGE -- COMMAND",
        "-v" => "--volume mounts a volume; --version shows the version",
        "--mount" => "mount a volume: --volume pvc/NAME:PATH",
        "--serviceaccount" | "--sa" => "--service-account NAME",
        "--restart" | "--max-retries" | "--backoff-limit" => "--retries N",
        "--timeout" | "--active-deadline-seconds" => {
            "--deadline TIME limits the run, --start-deadline TIME the wait for it"
        }
        "--limits" | "--requests" | "-m" | "--cpus" => "--memory QUANTITY, --cpu QUANTITY and --cpu-limit QUANTITY",
        "-p" | "--publish" | "--port" => "a process has no ports; to reach one: kubectl port-forward POD PORT",
        "--entrypoint" => {
            "the command says all, an image's ENTRYPOINT is not used: … --image IMAGE -- PROGRAM ARGUMENT"
        }
        "--container" | "-c" => "a process has one container: leave it out",
        "--force" | "--now" | "--grace-period" => "end it at once: rproc stop --grace-period 0 NAME",
        "--filename" => "-f FILE, or --file FILE",
        "--all-attempts" | "--previous" => "an earlier attempt: --attempt N",
        _ => return None,
    })
}

/// A command or an image in the wrong place.
fn command(words: &[&str], usage: &clap::Error) -> Option<String> {
    let verb = words.iter().find(|word| !word.starts_with('-'))?;
    let is_misplaced = matches!(
        usage.kind(),
        ErrorKind::UnknownArgument | ErrorKind::ValueValidation | ErrorKind::MissingRequiredArgument
    );
    if !is_misplaced || !["run", "exec"].contains(verb) || words.contains(&"--") && *verb == "exec" {
        return None;
    }
    let has = |name: &str| {
        words
            .iter()
            .any(|word| *word == name || word.starts_with(&format!("{name}=")))
    };
    if *verb == "run" && !has("--image") && !has("-f") && !has("--file") {
        return Some("the image is a flag: rproc run --image IMAGE -- COMMAND".to_owned());
    }
    (!words.contains(&"--")).then(|| format!("put -- before the command: rproc {verb} … -- COMMAND"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command;

    fn hinted(words: &[&str]) -> Option<String> {
        let arguments: Vec<OsString> = ["rproc"].iter().chain(words).map(OsString::from).collect();
        let usage = command::parser(None).try_get_matches_from(&arguments).unwrap_err();
        hint(&arguments, &usage)
    }

    #[test]
    fn what_fingers_type_gets_what_was_meant() {
        for (words, part) in [
            (&["ls"][..], "rproc ps"),
            (&["stats"], "rproc top"),
            (&["kill", "x"], "rproc stop"),
            (&["rm", "x"], "rproc delete"),
            (&["status", "x"], "rproc describe"),
            (&["run", "--name", "x", "--image", "i", "--", "y"], "rproc run NAME"),
            (&["run", "-v", "a:/b", "--image", "i", "--", "y"], "--volume"),
            (
                &["run", "--serviceaccount", "a", "--image", "i", "--", "y"],
                "--service-account",
            ),
            (&["run", "--rm", "-it", "busybox", "sh"], "--image IMAGE"),
            (&["run", "--rm", "-it", "busybox:1.36", "sh"], "--image IMAGE"),
            (&["run", "job", "--", "sh"], "--image IMAGE"),
            (
                &["run", "job", "--image", "i", "echo", "hi"],
                "put -- before the command: rproc run",
            ),
            (&["exec", "job", "ls"], "put -- before the command: rproc exec"),
        ] {
            let hint = hinted(words).unwrap_or_default();
            assert!(hint.contains(part), "{words:?}: {hint:?}");
        }
        for words in [
            &["frobnicate"][..],
            &["logs", "a", "--tail", "x"],
            &["signal", "a", "NOPE"],
            &["exec", "#", "--", "x"],
        ] {
            assert_eq!(hinted(words), None, "{words:?}");
        }
    }

    /// A hint must name only commands and flags that exist.
    #[test]
    fn each_verb_of_a_hint_is_there() {
        let parser = command::parser(None);
        let known = |verb: &str| parser.find_subcommand(verb).is_some();
        let words = [
            "ls",
            "rm",
            "kill",
            "cancel",
            "status",
            "start",
            "restart",
            "apply",
            "edit",
            "log",
            "sh",
            "watch",
            "suspend",
            "unpause",
            "stats",
            "bundle",
            "cp",
            "port-forward",
            "auth",
        ];
        for word in words {
            let text = verb(word).unwrap();
            assert!(!known(word), "{word} is a verb of ours");
            for part in text.split("rproc ").skip(1) {
                let named = part.split([' ', ';', ',']).next().unwrap();
                assert!(known(named), "{text}: {named}");
            }
        }
    }
}
