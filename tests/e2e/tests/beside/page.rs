//! The page of `rproc ui` in a browser. page/test/ has the tests of everything that needs no cluster.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use remoteprocess_e2e::{Program, Running, User, spec, with_temp_ns};
use serde_json::json;

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../page");
/// Where page/test/browser.mjs looks for a browser.
const BROWSERS: [&str; 3] = [
    "/usr/bin/chromium",
    "/usr/bin/chromium-browser",
    "/usr/bin/google-chrome",
];

/// Why the page cannot be tested here, if it cannot.
fn missing() -> Option<&'static str> {
    let needs = [
        (
            "there is no Chromium",
            BROWSERS.iter().any(|path| Path::new(path).exists()),
        ),
        (
            "there is no Node",
            Command::new("node").arg("--version").output().is_ok(),
        ),
        (
            "the page was not built: cargo xtask page",
            Path::new(PAGE).join("node_modules/playwright-core").exists(),
        ),
    ];
    needs.into_iter().find_map(|(why, is_there)| (!is_there).then_some(why))
}

/// Serves the page to a user, and returns the link; `None` if this `rproc` has no page.
fn serve(user: &User) -> Result<Option<(Running, String)>> {
    let mut server = user.rproc(&["ui", "--no-browser"]).start()?;
    match server.wait_for_stderr("serving the page") {
        Ok(()) => {
            let link = server.said().trim().to_owned();
            Ok(Some((server, link)))
        }
        Err(error) if format!("{error:#}").contains("without the page") => Ok(None),
        Err(error) => Err(error),
    }
}

#[test]
fn a_terminal_in_a_browser_is_that_of_a_real_process() {
    if let Some(why) = missing() {
        println!("LEFT OUT, the terminal in a browser: {why}");
        return;
    }
    with_temp_ns("page", |namespace| {
        let viewer = namespace.user("viewer", Some("view"))?;
        let Some((_editors, link)) = serve(&namespace.editor)? else {
            println!("LEFT OUT, the terminal in a browser: this rproc was built without the page");
            return Ok(());
        };
        let (_viewers, viewers_link) = serve(&viewer)?.context("the same rproc")?;
        let environment = [json!({"name": "PS1", "value": "remote> "})];
        let shell = json!({"tty": true, "stdin": true, "env": environment});
        namespace.apply("shell", spec("exec sh", shell)).succeed()?;
        namespace.wait_running("shell")?;
        let script = format!("{PAGE}/test/cluster.mjs");
        let words = [&*script, &link, &viewers_link, &namespace.name, "shell"];
        let browser = Program::new("node", words).within(Duration::from_secs(90));
        browser.finish()?.expect_code(0)?;
        let object = namespace.wait_finished("shell")?;
        ensure!(object["status"]["exitCode"] == 5, "{:#}", object["status"]);
        // Only the process itself is in its output, not the command beside it.
        let logs = namespace.editor.rproc(&["logs", "shell"]).finish()?;
        let shown = logs.expect_code(5)?.out();
        ensure!(shown.contains("again=é42") && !shown.contains("other="), "{logs}");
        Ok(())
    });
}
