//! Arguments that are refused before any call, and commands that need no cluster.

use assert_cmd::Command;

fn rproc(arguments: &[&str]) -> Command {
    let mut command = Command::cargo_bin("rproc").expect("it is built");
    command
        .env("KUBECONFIG", "/nonexistent/kubeconfig")
        .env_remove("RPROC_SERVER")
        .env("RPROC_CONFIG", "/dev/null")
        .args(arguments);
    command
}

fn stderr(arguments: &[&str], code: i32) -> String {
    let output = rproc(arguments).assert().code(code).get_output().clone();
    assert!(output.stdout.is_empty(), "standard output is the program's");
    String::from_utf8(output.stderr).expect("text")
}

#[test]
fn wrong_arguments_are_named_and_are_125() {
    for (arguments, word) in [
        (&["run", "job", "--", "true"][..], "--image"),
        (&["run", "job", "--image", "busybox"], "COMMAND"),
        (
            &["run", "--image", "i", "--image-pull-policy", "Sometimes", "--", "x"],
            "IfNotPresent",
        ),
        (&["run", "--image", "i", "--rm", "--detach", "--", "x"], "--detach"),
        (&["logs"], "NAME"),
        (&["logs", "job", "--tail", "3", "--offset", "3"], "--offset"),
        (&["logs", "job", "--since", "5m", "--offset", "3"], "--offset"),
        (
            &["logs", "job", "--since", "5m", "--since-time", "2026-01-01T00:00:00Z"],
            "--since-time",
        ),
        (&["logs", "job", "--since-time", "yesterday"], "2026-01-31T12:00:00Z"),
        (&["logs", "job", "--offset", "stdin=3"], "stdout=N,stderr=M"),
        (
            &["logs", "job", "--offset", "stdout=3,stderr=4", "--stream", "stdout"],
            "leave --stream out",
        ),
        (&["logs", "a", "b", "--offset", "3"], "name one"),
        (&["logs", "a", "b", "--uid", "u"], "--uid"),
        (&["logs", "a", "-l", "app=x"], "--selector"),
        (&["logs", "-A", "--uid", "u"], "--uid"),
        (&["logs", "job", "-o", "json", "--timestamps"], "--timestamps"),
        (&["logs", "job", "-o", "json", "--raw"], "--raw"),
        (&["logs", "job", "-o", "yaml"], "json"),
        (&["logs", "job", "--verify", "--tail", "3"], "--tail"),
        (&["logs", "job", "--verify", "-o", "json"], "--output"),
        (&["logs", "job", "--max-log-requests", "0"], "0"),
        (&["signal", "job", "SIGNOPE"], "HUP INT QUIT"),
        (&["stop", "--signal", "0", "job"], "no such signal"),
        (&["wait", "job", "--for", "done"], "condition=TYPE"),
        (&["frobnicate"], "frobnicate"),
    ] {
        let text = stderr(arguments, 125);
        assert!(text.contains(word), "{arguments:?}: {text}");
        assert!(text.lines().all(|line| line.starts_with("rproc: ")), "{text}");
    }
}

#[test]
fn our_own_failures_are_marked_and_are_125() {
    for arguments in [
        &["get"][..],
        &["logs", "job"],
        &["run", "--image", "i", "-o", "yaml", "--", "x"],
        &["run", "--image", "i", "-e", "NOT_SET_HERE_AT_ALL", "--", "x"],
    ] {
        let text = stderr(arguments, 125);
        assert!(text.lines().all(|line| line.starts_with("rproc:")), "{text}");
    }
    assert!(stderr(&["get"], 125).contains("kubeconfig"));
}

#[test]
fn a_dry_run_needs_no_cluster() {
    let yaml = rproc(&[
        "run",
        "hello",
        "--image",
        "busybox",
        "--dry-run=client",
        "-o",
        "yaml",
        "--",
        "echo",
        "hi",
    ]);
    let output = { yaml }.assert().success().get_output().stdout.clone();
    insta::assert_snapshot!(String::from_utf8(output).expect("text"));
    rproc(&["run", "hello", "--image", "busybox", "--dry-run", "--", "true"])
        .assert()
        .success()
        .stdout("remoteprocess.remoteprocess.dev/hello created (dry run)\n");
}

#[test]
fn a_closed_pipe_ends_it_as_it_ends_cat() {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let status = std::process::Command::new(assert_cmd::cargo::cargo_bin("rproc"))
        .args(["completion", "bash"])
        .stdout(writer)
        .status()
        .expect("it runs");
    assert_eq!(status.code(), Some(141));
}

#[test]
fn an_unknown_verb_suggests_nothing_that_harms() {
    for (typed, harmful) in [("stob", "stop"), ("status", "pause"), ("rerun", "resume")] {
        let text = stderr(&[typed], 125);
        assert!(text.contains(typed) && !text.contains(harmful), "{text}");
    }
    let text = stderr(&["run", "--serviceaccount", "x"], 125);
    assert!(!text.contains("--version"), "{text}");
}

#[test]
fn names_that_would_change_the_request_are_refused() {
    for words in [
        &["delete", "#3"][..],
        &["delete", "job?"],
        &["stop", "a", "?"],
        &["get", "a1?dryRun=All"],
        &["attach", "a..b"],
    ] {
        let text = stderr(words, 125);
        assert!(text.contains("no process can have this name"), "{words:?}: {text}");
    }
    assert!(stderr(&["ps", "-n", "a/b"], 125).contains("no namespace can have this name"));
    assert!(stderr(&["logs", "--uid", "../x"], 125).contains("no object can have this uid"));
}

#[test]
fn the_result_file_of_an_earlier_run_is_not_taken_for_that_of_a_run_that_failed() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("result.json");
    std::fs::write(&path, "{\"exitCode\": 0}").expect("it is written");
    let file = path.to_str().expect("text");
    stderr(&["run", "job", "--image", "i", "--result-file", file, "--", "x"], 125);
    let read: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).expect("it is there")).expect("JSON");
    assert_eq!(
        (&read["rprocExitCode"], &read["exitCode"]),
        (&125.into(), &serde_json::Value::Null),
        "{read}"
    );
    assert!(
        read["message"].as_str().is_some_and(|text| text.contains("kubeconfig")),
        "{read}"
    );

    assert_eq!(read["name"], "job", "{read}");
    std::fs::write(&path, "{\"exitCode\": 0}").expect("it is written");
    stderr(&["run", "--result-file", file, "job", "--wrong", "--", "x"], 125);
    let read: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).expect("it is there")).expect("JSON");
    assert!(
        read["message"].as_str().is_some_and(|text| text.contains("--wrong")),
        "{read}"
    );
    assert_eq!(
        (&read["name"], &read["namespace"]),
        (&"job".into(), &"".into()),
        "{read}"
    );
    let text = stderr(
        &[
            "run",
            "job",
            "--image",
            "i",
            "--result-file",
            "/nonexistent/r",
            "--",
            "x",
        ],
        125,
    );
    assert!(text.contains("/nonexistent/r"), "{text}");
}

#[test]
fn the_result_file_names_the_process_also_after_wrong_arguments() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("result.json");
    let file = path.to_str().expect("text");
    let result = format!("--result-file={file}");
    for words in [
        &["-n", "ns", "run", "--deadline", "soon", "-it", "job", &result][..],
        &["run", "-qnns", "--wrong", "job", "more", "--image=i", &result],
        &[
            "rerun",
            "--namespace=ns",
            "job",
            "--detach",
            "--rm",
            "--result-file",
            file,
        ],
    ] {
        stderr(words, 125);
        let read: serde_json::Value =
            serde_json::from_slice(&std::fs::read(&path).expect("it is there")).expect("JSON");
        let found = (&read["name"], &read["namespace"]);
        assert_eq!(found, (&"job".into(), &"ns".into()), "{words:?}: {read}");
    }
}

#[test]
fn without_a_verb_the_help_is_the_answer() {
    let bare = rproc(&[]).assert().code(0).get_output().clone();
    assert!(String::from_utf8_lossy(&bare.stdout).contains("Commands:"), "{bare:?}");
    assert!(bare.stderr.is_empty(), "{bare:?}");
}

#[test]
fn a_closed_standard_error_is_no_reason_to_abort() {
    let closed = std::process::Command::new("sh")
        .args(["-c", "exec \"$0\" frobnicate 2>&-; exit 1", env!("CARGO_BIN_EXE_rproc")])
        .status()
        .expect("it runs");
    assert_eq!(closed.code(), Some(125));
    let full = std::fs::OpenOptions::new()
        .write(true)
        .open("/dev/full")
        .expect("a full device");
    let failed = std::process::Command::new(env!("CARGO_BIN_EXE_rproc"))
        .arg("frobnicate")
        .stderr(full)
        .status()
        .expect("it runs");
    assert_eq!(failed.code(), Some(125));
}

#[test]
fn a_result_file_that_is_standard_output_keeps_what_the_log_holds() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("log");
    std::fs::write(&path, "earlier\n").expect("it is written");
    for result in ["/dev/stdout", path.to_str().expect("text")] {
        let log = std::fs::OpenOptions::new().append(true).open(&path).expect("the log");
        let status = std::process::Command::new(env!("CARGO_BIN_EXE_rproc"))
            .env("KUBECONFIG", "/nonexistent/kubeconfig")
            .args(["run", "job", "--image", "i", "--result-file", result, "--", "x"])
            .stdout(log)
            .stderr(std::process::Stdio::null())
            .status()
            .expect("it runs");
        assert_eq!(status.code(), Some(125));
        let kept = std::fs::read_to_string(&path).expect("the log");
        assert!(kept.starts_with("earlier\n"), "{result}: {kept}");
    }
}

#[test]
fn a_closed_standard_input_is_not_an_empty_one() {
    let rproc = assert_cmd::cargo::cargo_bin("rproc");
    let directory = std::env::temp_dir();
    for (redirection, word) in [
        ("<&-".to_owned(), "closed"),
        (format!("< {}", directory.display()), "a directory"),
        ("0> /dev/null".to_owned(), "open for writing only"),
    ] {
        for verb in ["run -i --image busybox -- cat", "attach -i job", "exec -i job -- cat"] {
            let script = format!("exec \"$0\" {verb} {redirection}");
            let output = std::process::Command::new("sh")
                .args(["-c", &script])
                .arg(&rproc)
                .env("KUBECONFIG", "/nonexistent/kubeconfig")
                .output()
                .expect("a shell");
            let text = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(125), "{script}: {text}");
            assert!(text.contains(&format!("standard input is {word}")), "{script}: {text}");
        }
    }
    for redirection in ["< /dev/null", "<> /dev/null"] {
        let script = format!("exec \"$0\" attach -i job {redirection}");
        let mut shell = std::process::Command::new("sh");
        let shell = shell
            .args(["-c", &script])
            .arg(&rproc)
            .env("KUBECONFIG", "/nonexistent/kubeconfig");
        let text = String::from_utf8_lossy(&shell.output().expect("a shell").stderr).into_owned();
        assert!(!text.contains("standard input"), "{text}");
    }
}

fn with_settings(text: &str, arguments: &[&str]) -> std::process::Output {
    let home = tempfile::tempdir().expect("a folder");
    let folder = home.path().join("rproc");
    std::fs::create_dir(&folder).expect("a folder");
    std::fs::write(folder.join("config.yaml"), text).expect("a file");
    let mut command = rproc(arguments);
    let command = command.env("XDG_CONFIG_HOME", home.path()).env_remove("RPROC_CONFIG");
    command.output().expect("it runs")
}

#[test]
fn settings_come_from_flag_environment_and_file_in_this_order() {
    let run = ["run", "job", "--image", "i", "--dry-run", "-o", "json"];
    let namespace = |text: &str, more: &[&str]| {
        let arguments: Vec<&str> = run.iter().chain(more).copied().chain(["--", "x"]).collect();
        let output = with_settings(text, &arguments);
        let error = String::from_utf8_lossy(&output.stderr);
        let object: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{error}"));
        object["metadata"]["namespace"].as_str().map(str::to_owned)
    };
    assert_eq!(namespace("namespace: of-file", &[]).as_deref(), Some("of-file"));
    assert_eq!(
        namespace("namespace: of-file", &["-n", "of-flag"]).as_deref(),
        Some("of-flag")
    );
    assert_eq!(namespace("namespace: y", &[]).as_deref(), Some("y"));
}

#[test]
fn wrong_settings_are_named_before_anything_is_done() {
    for (text, word) in [
        ("namspace: a", "Did you mean namespace?"),
        ("detach-keys: a", "Did you mean detachKeys?"),
        ("color: blue", "color: invalid value 'blue'"),
        ("namespace: A_B", "namespace: invalid value 'A_B'"),
        ("kubeconfig: x", "there is no setting \"kubeconfig\""),
    ] {
        let output = with_settings(text, &["get"]);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(error.contains(word) && error.contains("config.yaml"), "{text}: {error}");
        assert_eq!(output.status.code(), Some(125), "{text}");
    }
}
