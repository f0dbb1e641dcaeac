//! Completion of names, by the program itself and in real shells.

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
use serde_json::{Value, json};

use crate::api::{Api, TOKEN, stderr};

fn token() -> Value {
    json!({"token": TOKEN})
}

fn offered(api: &Api, kubeconfig: &Path, shell: &str, words: &[&str]) -> Vec<String> {
    let arguments = [&["__complete", shell, "rproc"], words].concat();
    let output = api.rproc(kubeconfig, &arguments).output().unwrap();
    assert!(
        output.status.success() && output.stderr.is_empty(),
        "{}",
        stderr(&output)
    );
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().map(str::to_owned).collect()
}

#[test]
fn names_come_from_the_cluster_that_the_line_names() {
    let api = Api::start();
    let kubeconfig = api.kubeconfig(&token(), &json!({}));
    for (words, expected) in [
        (&["logs", "-n", "jobs", ""][..], &["build", "bundle", "other"][..]),
        (&["-n", "jobs", "logs", "bu"], &["build", "bundle"]),
        (&["logs", "--namespace=jobs", "bun"], &["bundle"]),
        (&["describe", "-n", "jobs", "build", "bu"], &["bundle"]),
        (&["delete", "-n", "jobs", "rproc/bun"], &["rproc/bundle"]),
        (&["delete", "-n", "jobs", "pod/b"], &[]),
        (&["stop", "-n", "jobs", ""], &["build"]),
        (&["exec", "-n", "jobs", "bu"], &["build"]),
        (&["run", "-n", "jobs", "bu"], &[]),
        (&["logs", "bu"], &[]),
        (&["logs", "-n", "j"], &["jobs"]),
        (&["logs", "--namespace=d"], &["--namespace=default"]),
        (&["logs", "--context", ""], &["main"]),
        (&["logs", "-n", "jobs", "build", "--attempt", ""], &["1", "2"]),
        (&["signal", "build", "us"], &["USR1", "USR2"]),
        (&["signal", "build", "SIGUSR1"], &["SIGUSR1"]),
        (&["stop", "--signal", "HU"], &["HUP"]),
        (
            &["wait", "x", "--for", "phase=S"],
            &["phase=Starting", "phase=Stopping", "phase=Succeeded"],
        ),
        (
            &["delete", "--field-selector", "status.phase=F"],
            &["status.phase=Failed"],
        ),
        (&["logs", "--strea"], &["--stream"]),
        (&["logs", "--context", "nowhere", "b"], &[]),
        (&["whoa"], &["whoami"]),
        (&["trigger", "des"], &["describe"]),
        (&["trigger", "describe", "-n", "jobs", "o"], &["orders", "other"]),
        (&["trigger", "ls", "-n", "jobs", "orders", ""], &["other"]),
        (&["trigger", "test", "-n", "jobs", "ptrig/or"], &["ptrig/orders"]),
        (&["trigger", "test", "-n", "jobs", "rproc/or"], &[]),
        (&["sink", "describe", "-n", "jobs", ""], &["feed", "other"]),
        (&["sink", "ls", "-n", "jobs", "psink/f"], &["psink/feed"]),
        (&["sink", "ls", "-n", "jobs", "ptrig/f"], &[]),
    ] {
        assert_eq!(offered(&api, &kubeconfig, "bash", words), expected, "{words:?}");
    }
    let attempts = offered(&api, &kubeconfig, "zsh", &["signal", "x", "HU"]);
    assert_eq!(attempts, ["HUP:1"]);
    assert_eq!(offered(&api, &kubeconfig, "fish", &["signal", "x", "HU"]), ["HUP\t1"]);
}

#[test]
fn kubectl_gets_candidates_and_a_directive() {
    let api = Api::start();
    let kubeconfig = api.kubeconfig(&token(), &json!({}));
    let link = api.folder.path().join("kubectl_complete-rproc");
    std::os::unix::fs::symlink(api.rproc(&kubeconfig, &[]).get_program(), &link).unwrap();
    let run = |words: &[&str]| {
        let mut command = Command::new(&link);
        command
            .args(words)
            .env("KUBECONFIG", &kubeconfig)
            .env_remove("HTTPS_PROXY");
        String::from_utf8(command.output().unwrap().stdout).unwrap()
    };
    assert_eq!(run(&["logs", "-n", "jobs", "bu"]), "build\nbundle\n:4\n");
    assert_eq!(run(&["delete", "--field-selector", "status.p"]), "status.phase=\n:6\n");
    assert!(run(&["who"]).starts_with("whoami\tShow who you are"));
    assert_eq!(run(&["logs", "-n", "jobs", "zzz"]), ":4\n");
}

#[test]
fn a_cluster_that_does_not_answer_offers_nothing_and_says_nothing() {
    let api = Api::start();
    let kubeconfig = api.kubeconfig(&token(), &json!({}));
    let begin = Instant::now();
    assert!(offered(&api, &kubeconfig, "bash", &["logs", "-n", "hanging", ""]).is_empty());
    assert!(begin.elapsed() < Duration::from_secs(4), "{:?}", begin.elapsed());
    for user in [
        json!({"token": "wrong"}),
        json!({}),
        json!({"exec": {"apiVersion": "client.authentication.k8s.io/v1", "command": "none", "interactiveMode": "Always"}}),
    ] {
        let kubeconfig = api.kubeconfig(&user, &json!({}));
        assert!(offered(&api, &kubeconfig, "bash", &["logs", "-n", "jobs", "b"]).is_empty());
    }
    assert!(offered(&api, Path::new("/nowhere"), "bash", &["logs", "b"]).is_empty());
}

/// A plugin that asks for a password on its input, its standard error and the terminal.
fn asking(api: &Api) -> Value {
    let credential = json!({"kind": "ExecCredential", "apiVersion": "client.authentication.k8s.io/v1",
                            "status": {"token": TOKEN}});
    let text =
        format!("echo Password: >&2; (echo Password: > /dev/tty) 2>/dev/null; cat > /dev/null; echo '{credential}'");
    api.script("asking", &text);
    json!({"exec": {"apiVersion": "client.authentication.k8s.io/v1", "command": "./asking", "interactiveMode": "IfAvailable"}})
}

/// A shell at a terminal.
struct Typist {
    terminal: OwnedFd,
    shell: Child,
    seen: String,
}

impl Typist {
    fn new(shell: &Path, arguments: &[&str], environment: &Command) -> Self {
        let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&terminal).unwrap();
        unlockpt(&terminal).unwrap();
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let slave = || Stdio::from(ioctl_tiocgptpeer(&terminal, flags).unwrap());
        let program = Path::new(environment.get_program());
        let folders = std::env::var_os("PATH").unwrap();
        let folders = std::env::split_paths(&folders).collect::<Vec<_>>();
        let folders = std::iter::once(program.parent().unwrap().to_owned()).chain(folders);
        // setsid(1) gives the shell the terminal, so that a plugin could find it.
        let mut command = Command::new("setsid");
        command.arg("--ctty").arg(shell).args(arguments);
        for (name, value) in environment.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        command
            .env("PATH", std::env::join_paths(folders).unwrap())
            .env("TERM", "xterm")
            .stdin(slave())
            .stdout(slave())
            .stderr(slave());
        let shell = command.spawn().unwrap();
        Self {
            terminal,
            shell,
            seen: String::new(),
        }
    }

    fn types(&self, text: &str) {
        let mut file = std::fs::File::from(self.terminal.try_clone().unwrap());
        file.write_all(text.as_bytes()).unwrap();
    }

    /// Reads until this was printed.
    fn sees(&mut self, expected: &str) {
        let (sender, receiver) = std::sync::mpsc::channel();
        let mut file = std::fs::File::from(self.terminal.try_clone().unwrap());
        let (mut seen, wanted) = (std::mem::take(&mut self.seen), expected.to_owned());
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while !seen.contains(&wanted) {
                match file.read(&mut buffer) {
                    Ok(length) if length > 0 => seen.push_str(&String::from_utf8_lossy(&buffer[..length])),
                    _ => break,
                }
                let _ = sender.send(seen.clone());
            }
        });
        let end = Instant::now() + Duration::from_secs(30);
        while !self.seen.contains(expected) {
            match receiver.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(seen) => self.seen = seen,
                Err(_) => panic!("{expected:?} does not come: {:?}", self.seen),
            }
        }
    }
}

impl Drop for Typist {
    fn drop(&mut self) {
        let _ = self.shell.kill();
        let _ = self.shell.wait();
    }
}

fn find(shell: &str) -> Option<PathBuf> {
    let folders = std::env::var_os("PATH")?;
    std::env::split_paths(&folders)
        .map(|folder| folder.join(shell))
        .find(|path| path.is_file())
}

/// Tab completes names, also behind `=`, and a plugin that wants a password is not heard.
fn completes(shell: &str, arguments: &[&str], setup: &str) {
    let Some(path) = find(shell) else {
        assert_ne!(shell, "bash", "bash is needed");
        eprintln!("{shell} is not installed");
        return;
    };
    let api = Api::start();
    let kubeconfig = api.kubeconfig(&asking(&api), &json!({}));
    let mut typist = Typist::new(&path, arguments, &api.rproc(&kubeconfig, &[]));
    typist.types(&format!("{setup}; echo rea''dy\r"));
    typist.sees("ready");
    for (keys, line) in [
        ("rproc describe -n jobs bun\t", "<rproc><describe><-n><jobs><bundle>"),
        (
            "rproc logs --namespace=jo\tbui\t",
            "<rproc><logs><--namespace=jobs><build>",
        ),
    ] {
        // Ctrl-A: the line that was completed becomes arguments, which show where it was split.
        typist.types(&format!("{keys}\u{1}printf '<%s>' \r"));
        typist.sees(line);
    }
    assert!(!typist.seen.contains("Password"), "{}", typist.seen);
}

#[test]
fn bash_completes_live_names() {
    completes(
        "bash",
        &["--norc", "--noprofile", "-i"],
        "source <(rproc completion bash)",
    );
}

#[test]
fn zsh_completes_live_names() {
    completes(
        "zsh",
        &["-f", "-i"],
        "bindkey -e; autoload -U compinit; compinit -D -u; source <(rproc completion zsh)",
    );
}

#[test]
fn fish_completes_live_names() {
    completes("fish", &["--no-config", "-i"], "rproc completion fish | source");
}
