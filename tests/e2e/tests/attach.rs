//! Sessions that one can leave and re-enter: terminals, input, one writer, any number of watchers.

use std::io::Write;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use remoteprocess_e2e::{
    BUSYBOX, Namespace, Screen, counting, delete_operator_pods, image_arguments, sha256, until, wait_for_operator,
    with_temp_ns,
};
use rustix::process::{Pid, Signal, kill_process};

fn screen(namespace: &Namespace) -> Result<Option<Screen>> {
    Screen::open(namespace.editor.rproc(&[]), 100, 30)
}

/// The remote terminal gets this size; a moment after the window.
fn has_size(screen: &Screen, size: &str) -> Result<()> {
    until(&format!("a terminal of {size}"), Duration::from_secs(30), || {
        screen.line("clear; stty size")?;
        Ok(screen.shows()?.contains(size))
    })
}

/// rproc has ended: what is typed earlier is its own.
fn at_prompt(screen: &Screen) -> Result<()> {
    until("the end of rproc", Duration::from_secs(60), || {
        Ok(screen.running()?.is_empty())
    })
}

/// The shell is back, and its terminal as it was.
fn is_back(screen: &Screen) -> Result<()> {
    at_prompt(screen)?;
    // Only a shell that reads its terminal line by line answers so.
    screen.line("echo back=$((6 * 7)) code=$?")?;
    screen.wait_for("back=42")?;
    ensure!(screen.is_as_before()?, "the terminal is not as it was");
    screen.line("clear")
}

#[test]
fn a_full_screen_program_is_left_and_re_entered_and_nothing_typed_is_lost() {
    with_temp_ns("screen", |namespace| {
        let Some(screen) = screen(namespace)? else {
            return Ok(());
        };
        let [image, policy] = image_arguments(BUSYBOX);
        let script = "'vi /tmp/text; echo; cat /tmp/text; exit 5'";
        screen.line(&format!("rproc run edit -it {image} {policy} -- sh -c {script}"))?;
        // vi draws a line of tildes for what is behind the end of the file.
        screen.wait_for("~")?;
        screen.types("ione")?;
        screen.wait_for("one")?;
        screen.resize(80, 20)?;
        screen.wait_until("the text in a smaller window", |shown| {
            shown.contains("one") && shown.lines().filter(|line| line.starts_with('~')).count() < 20
        })?;

        screen.presses(&["C-p", "C-q"])?;
        screen.wait_for("left to itself")?;
        is_back(&screen)?;

        screen.line("rproc attach -it edit")?;
        screen.wait_until("the text drawn anew", |shown| {
            shown.contains("one") && shown.contains('~')
        })?;
        screen.types(" two")?;
        screen.wait_for("one two")?;
        for pid in screen.running()? {
            let pid = Pid::from_raw(pid).context("a process id")?;
            kill_process(pid, Signal::KILL)?;
        }
        // Nobody could restore the terminal.
        screen.wait_for("prompt>")?;
        screen.mend()?;
        is_back(&screen)?;

        screen.line("rproc attach -it --take-over edit")?;
        screen.wait_for("one two")?;
        delete_operator_pods()?;
        screen.types(" three")?;
        wait_for_operator()?;
        screen.wait_for("one two three")?;
        screen.presses(&["Escape"])?;
        // Together they would be one key.
        screen.wait_for("- /tmp/text")?;
        screen.line(":wq")?;
        at_prompt(&screen)?;
        screen.line("echo code=$?")?;
        screen.wait_for("code=5")?;
        ensure!(screen.is_as_before()?, "the terminal is not as it was");
        let logs = namespace.editor.rproc(&["logs", "edit"]).finish()?;
        logs.expect_code(5)?;
        ensure!(logs.out().trim_end().ends_with("one two three"), "{logs}");
        Ok(())
    });
}

#[test]
fn a_shell_has_ctrl_c_sizes_and_an_exit_code() {
    with_temp_ns("shell", |namespace| {
        let Some(screen) = screen(namespace)? else {
            return Ok(());
        };
        let [image, policy] = image_arguments(BUSYBOX);
        screen.line(&format!(
            "rproc run work -it {image} {policy} --env PS1='remote> ' -- sh"
        ))?;
        screen.wait_for("remote>")?;
        has_size(&screen, "30 100")?;
        screen.resize(70, 25)?;
        has_size(&screen, "25 70")?;
        // Until the shell has begun the line, Ctrl-C is a key of its editor.
        screen.line("clear; echo sle''eping; sleep 600")?;
        screen.wait_for("sleeping")?;
        screen.presses(&["C-c"])?;
        screen.line("echo after=$((1 + 1))")?;
        screen.wait_for("after=2")?;
        // Signals to rproc itself restore the terminal too.
        for (signal, code) in [(Signal::TERM, 143), (Signal::HUP, 129), (Signal::INT, 130)] {
            let pids = screen.running()?;
            let pid = pids.first().and_then(|pid| Pid::from_raw(*pid)).context("rproc")?;
            kill_process(pid, signal)?;
            screen.wait_for("left to itself")?;
            at_prompt(&screen)?;
            screen.line(&format!("clear; echo left={code}=$?"))?;
            ensure!(screen.is_as_before()?, "the terminal is not as it was after {signal:?}");
            screen.line("clear; rproc attach -it --take-over work")?;
            screen.presses(&["Enter"])?;
            screen.wait_for("remote>")?;
        }
        screen.line("exit 9")?;
        at_prompt(&screen)?;
        screen.line("echo code=$?")?;
        screen.wait_for("code=9")?;
        is_back(&screen)
    });
}

#[test]
fn a_megabyte_of_input_arrives_once_with_its_end() {
    with_temp_ns("stdin", |namespace| {
        let input = counting(1 << 20);
        let [image, policy] = image_arguments(BUSYBOX);
        let words = [
            "run",
            "sum",
            "-i",
            &image,
            &policy,
            "--",
            "sh",
            "-c",
            "sleep 3; sha256sum",
        ];
        let running = namespace.editor.rproc(&words).input(input.clone()).start()?;
        namespace.wait_running("sum")?;
        delete_operator_pods()?;
        let finished = running.finish()?;
        finished.expect_code(0)?;
        ensure!(finished.out().starts_with(&sha256(&input)), "{finished}");
        Ok(())
    });
}

#[test]
fn one_writes_others_watch_and_rights_decide() {
    with_temp_ns("writers", |namespace| {
        let [image, policy] = image_arguments(BUSYBOX);
        let words = ["run", "cat", "-i", &image, &policy, "--", "cat"];
        // Its input stays open.
        let mut first = namespace.editor.rproc(&words).into_command().spawn()?;
        let mut typing = first.stdin.take().context("stdin")?;
        typing.write_all(b"first\n")?;
        namespace.wait_running("cat")?;
        let mut watch = namespace.editor.rproc(&["attach", "cat"]).start()?;
        watch.wait_for_bytes(6)?;
        let mut second = namespace
            .editor
            .rproc(&["attach", "-i", "cat"])
            .input("second\n")
            .start()?;
        second.wait_for_stderr("is writing into the process")?;
        second.signal(Signal::TERM)?;

        let viewer = namespace.user("viewer", Some("view"))?;
        let mut refused = viewer.rproc(&["attach", "-i", "cat"]).start()?;
        refused.wait_for_stderr("remoteprocesses/attach")?;
        refused.signal(Signal::TERM)?;

        let taking = ["attach", "-i", "--take-over", "cat"];
        let third = namespace.editor.rproc(&taking).input("third\n").finish()?;
        third.expect_code(0)?;
        let watched = watch.finish()?;
        ensure!(watched.expect_code(0)?.out() == "first\nthird\n", "{watched}");
        let output = first.wait_with_output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(
            said.contains("has taken over") && output.status.code() == Some(125),
            "{said}"
        );
        Ok(())
    });
}

#[test]
fn a_process_without_input_says_so() {
    with_temp_ns("noinput", |namespace| {
        let mut run = namespace.editor.run("plain", "echo up; sleep 60").start()?;
        run.wait_for_bytes(3)?;
        let refused = namespace
            .editor
            .rproc(&["attach", "-i", "plain"])
            .within(Duration::from_secs(30));
        let refused = refused.finish()?;
        refused
            .expect_code(125)?
            .expect_stderr(&["takes no input", "spec.stdin"])?;
        run.signal(Signal::INT)?;
        run.finish()?;
        Ok(())
    });
}
