//! The file with settings: one precedence, errors that name file and key, and nothing of it in the program.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use super::in_time;
use super::pod::{Options, Pod};
use super::relay::TestRelay;

/// Arguments, environment, and the size of the spool that is taken, in bytes.
type Case<'a> = (&'a [&'a str], &'a [(&'a str, &'a str)], u8);

/// All that `run` needs, but for a spool of this size in bytes.
fn with_spool(size: u64) -> String {
    "relayEnroll: r:1\nrelay: r:2\ncaBundle: PEM\nprocessNamespace: n\nprocessName: p\nprocessUid: u\nattempt: 1\n\
     podUid: i\npodIp: 127.0.0.1\n"
        .to_owned()
        + &format!("spoolSize: {size}\n")
}

fn agent(words: &[&str], environment: &[(&str, &str)]) -> Output {
    let mut agent = Command::new(env!("CARGO_BIN_EXE_agent"));
    agent.args(words).env_clear().envs(environment.iter().copied());
    agent.output().unwrap()
}

fn write(folder: &Path, text: &str) -> String {
    let path = folder.join("agent.yaml");
    fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

/// Which of three values is refused tells which one was taken.
#[test]
fn settings_come_from_flag_environment_and_file_in_this_order() {
    let folder = tempfile::tempdir().unwrap();
    let file = write(folder.path(), &with_spool(1));
    let by_flag = format!("--config={file}");
    let by_variable = ("RPROC_CONFIG", &*file);
    let other = ("RPROC_SPOOL_SIZE", "2");
    let cases: [Case; 11] = [
        (&["run", &by_flag], &[], 1),
        (&[&by_flag, "run"], &[], 1),
        (&["run"], &[by_variable], 1),
        (&["run", &by_flag], &[("RPROC_CONFIG", "/nonexistent")], 1),
        (&["run"], &[by_variable, other], 2),
        (&["run", "--spool-size=3"], &[by_variable, other], 3),
        (&["supervise", &by_flag], &[], 1),
        (&[&by_flag], &[], 1),
        (&["supervise", &by_flag, "--spool-size=3"], &[other], 3),
        (&["supervise", "--spool-size=3", &by_flag], &[other], 3),
        (&[], &[by_variable, other], 2),
    ];
    for (words, environment, bytes) in cases {
        let output = agent(words, environment);
        let error = String::from_utf8_lossy(&output.stderr);
        let refusal = format!("--spool-size is {bytes} bytes: at least 65536");
        assert!(error.contains(&refusal), "{words:?}, {environment:?}: {error}");
    }
}

/// Neither the supervisor nor the kubelet's hook tries such a file again.
#[test]
fn a_file_that_cannot_be_used_is_named_with_its_key() {
    let folder = tempfile::tempdir().unwrap();
    let large = format!("log: {}", "x".repeat(70_000));
    for (text, word) in [
        ("spool-size: 1", "Did you mean spoolSize?"),
        ("processNmae: a", "Did you mean processName?"),
        ("stallMillis: 1", "there is no setting \"stallMillis\""),
        ("config: /x", "there is no setting \"config\""),
        ("podIp: nowhere", "podIp: invalid value 'nowhere'"),
        ("attempt: [1, 2]", "attempt: expected one value"),
        ("timeoutSeconds: soon", "timeoutSeconds: invalid value 'soon'"),
        ("- log", "one line `key: value`"),
        (&*large, "larger than 65536 bytes"),
    ] {
        let file = write(folder.path(), text);
        for words in [&["run"][..], &["install"], &["supervise"], &[]] {
            let output = agent(words, &[("RPROC_CONFIG", &file)]);
            let error = String::from_utf8_lossy(&output.stderr);
            assert!(
                error.contains(word) && error.contains(&file),
                "{words:?}, {text:.40}: {error}"
            );
            assert_eq!(output.status.code(), Some(2), "{words:?}, {text:.40}: {error}");
        }
    }
    for missing in ["/nonexistent/agent.yaml", "/"] {
        let output = agent(&["run"], &[("RPROC_CONFIG", missing)]);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(
            error.contains(&format!("cannot read the settings in {missing}")),
            "{error}"
        );
        assert_eq!(output.status.code(), Some(2), "{error}");
    }
}

#[test]
fn a_variable_without_a_path_is_no_file() {
    let output = agent(&["run"], &[("RPROC_CONFIG", "")]);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(error.contains("--relay-enroll <RELAY_ENROLL>"), "{error}");
    let folder = tempfile::tempdir().unwrap();
    let program = format!("--entrypoint={}", write(folder.path(), "a program"));
    let handover = format!("--handover={}", folder.path().display());
    let words = ["install", &program, &handover, "--timeout-seconds=0"];
    let output = agent(&words, &[("RPROC_CONFIG", "")]);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(error.contains("no agent listens"), "{error}");
}

#[test]
fn the_hook_takes_its_settings_from_the_same_file() {
    let folder = tempfile::tempdir().unwrap();
    let handover = folder.path().join("handover");
    fs::create_dir(&handover).unwrap();
    let program = write(folder.path(), "a program");
    let text = format!(
        "entrypoint: {program}\nhandover: {}\ntimeoutSeconds: 0\nlog: debug\n",
        handover.display()
    );
    let file = folder.path().join("config.yaml");
    fs::write(&file, text).unwrap();
    let output = agent(&["install"], &[("RPROC_CONFIG", file.to_str().unwrap())]);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(
        error.contains("no agent listens on the handover socket after 0ns"),
        "{error}"
    );
    assert_eq!(fs::read_to_string(handover.join("entrypoint")).unwrap(), "a program");
}

/// The environment, as the operator sets it, decides over the file. The agent survives a kill with the same settings.
#[tokio::test(flavor = "multi_thread")]
async fn an_agent_with_only_a_file_runs_a_process() {
    let options = Options {
        supervised: true,
        by_file: true,
        env: &[("RPROC_PROCESS_UID", "of-the-environment")],
        ..Options::default()
    };
    let mut relay = TestRelay::start().await;
    let mut pod = Pod::start(&relay, &options);
    pod.shell("echo ${RPROC_CONFIG-none}");
    let start = in_time("a start", relay.next_start()).await;
    assert_eq!(start.process_uid, "of-the-environment");
    pod.signal_agent(rustix::process::Signal::KILL);
    let archive = in_time("the end", relay.be_home(|_| {})).await;
    assert_eq!(archive.head(0), "none\n");
    assert!(archive.exit().sealed);
    assert_eq!(pod.agent_ends().await.code(), Some(0));
}
