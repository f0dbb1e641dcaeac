//! Sessions that a user leaves and re-enters: terminals, input, one writer, any number of watchers.

use std::io::Write;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use remoteprocess_e2e::{BUSYBOX, Namespace, Screen, image_arguments, until, with_temp_ns};
use rustix::process::{Pid, Signal, kill_process};

fn screen(namespace: &Namespace) -> Result<Option<Screen>> {
    Screen::open(namespace.editor.rproc(&[]), 100, 30)
}

/// Waits until the remote terminal has this size, which follows the window's a moment later.
fn has_size(screen: &Screen, size: &str) -> Result<()> {
    until(&format!("a terminal of {size}"), Duration::from_secs(30), || {
        screen.line("clear; stty size")?;
        Ok(screen.shows()?.contains(size))
    })
}

#[test]
fn coming_back_to_a_terminal_types_nothing_into_the_program() {
    with_temp_ns("replay", |namespace| {
        let Some(screen) = screen(namespace)? else {
            return Ok(());
        };
        let [image, policy] = image_arguments(BUSYBOX);
        // The queries are old when the user attaches: the program reads what is typed, and no answer of the terminal.
        let script = r#"'printf "\033[c\033[>c\033[6n\033]11;?\007asked"; read line; echo "got=[$line]" | cat -v'"#;
        // Only the name is printed, and the typed line contains it, too: another word shows that it was created.
        screen.line(&format!(
            "rproc run quiz -d -i -t {image} {policy} -- sh -c {script} && echo ma''de"
        ))?;
        screen.wait_for("made")?;
        screen.line("clear; rproc wait quiz --for started; rproc attach -it quiz")?;
        screen.wait_for("asked")?;
        screen.line("hello")?;
        screen.wait_for("got=[hello]")?;
        screen.is_back()
    });
}

#[test]
fn the_first_look_at_a_terminal_sees_the_size_of_your_window() {
    with_temp_ns("size", |namespace| {
        let Some(screen) = screen(namespace)? else {
            return Ok(());
        };
        let [image, policy] = image_arguments(BUSYBOX);
        for flags in ["-t", "-it"] {
            screen.line(&format!(
                "clear; rproc run --rm -q {flags} {image} {policy} -- stty size"
            ))?;
            screen.wait_for("30 100")?;
            screen.is_back()?;
        }
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
        // Until the shell has started the command, Ctrl-C is a key of its editor.
        screen.line("clear; echo sle''eping; sleep 600")?;
        screen.wait_for("sleeping")?;
        screen.presses(&["C-c"])?;
        screen.line("echo after=$((1 + 1))")?;
        screen.wait_for("after=2")?;
        // Signals to rproc itself restore the terminal, too.
        for (signal, code) in [(Signal::TERM, 143), (Signal::HUP, 129), (Signal::INT, 130)] {
            let pids = screen.running()?;
            let pid = pids.first().and_then(|pid| Pid::from_raw(*pid)).context("rproc")?;
            kill_process(pid, signal)?;
            screen.wait_for("keeps running")?;
            screen.at_prompt()?;
            screen.line(&format!("clear; echo left={code}=$?"))?;
            ensure!(screen.is_as_before()?, "the terminal is not as it was after {signal:?}");
            screen.line("clear; rproc attach -it --take-over work")?;
            screen.presses(&["Enter"])?;
            screen.wait_for("remote>")?;
        }
        screen.line("exit 9")?;
        screen.at_prompt()?;
        screen.line("echo code=$?")?;
        screen.wait_for("code=9")?;
        screen.is_back()
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
fn a_process_without_input_is_reported() {
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
