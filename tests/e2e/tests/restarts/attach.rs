//! Input and sessions at a terminal survive a restart of the operator.

use anyhow::{Context, ensure};
use remoteprocess_e2e::{
    BUSYBOX, Screen, counting, delete_operator_pods, image_arguments, sha256, wait_for_operator, with_temp_ns,
};
use rustix::process::{Pid, Signal, kill_process};

#[test]
fn a_full_screen_program_is_left_and_re_entered_and_nothing_typed_is_lost() {
    with_temp_ns("screen", |namespace| {
        let Some(screen) = Screen::open(namespace.editor.rproc(&[]), 100, 30)? else {
            return Ok(());
        };
        let [image, policy] = image_arguments(BUSYBOX);
        let script = "'vi /tmp/text; echo; cat /tmp/text; exit 5'";
        screen.line(&format!("rproc run edit -it {image} {policy} -- sh -c {script}"))?;
        // vi draws tildes for the lines after the end of the file.
        screen.wait_for("~")?;
        screen.types("ione")?;
        screen.wait_for("one")?;
        screen.resize(80, 20)?;
        screen.wait_until("the text in a smaller window", |shown| {
            shown.contains("one") && shown.lines().filter(|line| line.starts_with('~')).count() < 20
        })?;

        screen.presses(&["C-p", "C-q"])?;
        screen.wait_for("keeps running")?;
        screen.is_back()?;

        // Another test may restart the operator at this moment. Then the agent has not heard that the input is free, and
        // keeps it for the writer's return.
        screen.line("rproc attach -it --take-over edit")?;
        screen.wait_until("the text drawn anew", |shown| {
            shown.contains("one") && shown.contains('~')
        })?;
        screen.types(" two")?;
        screen.wait_for("one two")?;
        for pid in screen.running()? {
            let pid = Pid::from_raw(pid).context("a process id")?;
            kill_process(pid, Signal::KILL)?;
        }
        // After SIGKILL the terminal is not restored.
        screen.wait_for("prompt>")?;
        screen.mend()?;
        screen.is_back()?;

        screen.line("rproc attach -it --take-over edit")?;
        screen.wait_for("one two")?;
        delete_operator_pods()?;
        screen.types(" three")?;
        wait_for_operator()?;
        screen.wait_for("one two three")?;
        screen.presses(&["Escape"])?;
        // Sent together they would be one key.
        screen.wait_for("- /tmp/text")?;
        screen.line(":wq")?;
        screen.at_prompt()?;
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
