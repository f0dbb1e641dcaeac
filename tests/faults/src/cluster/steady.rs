//! A program that writes at a steady pace until it is told to end, and notices when a write is refused or takes long.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use remoteprocess_e2e::{Finished, Namespace, Program, Running, glibc, image_arguments, sha256};

/// Lines of one write, and their length with the newline.
const LINES: usize = 10;
const LINE: usize = 100;
/// Minimum number of bytes per second: ten writes in 100 ms plus their own time.
pub(super) const RATE: usize = 50_000;
/// Its exit code, which nothing else uses by accident.
const CODE: i32 = 43;
/// Its process.
pub(super) const NAME: &str = "steady";

/// What the program saw.
pub(super) struct Noticed {
    /// Bytes that it wrote.
    pub bytes: usize,
    /// The longest time that a write took.
    pub longest: Duration,
    /// Writes that failed.
    pub errors: u64,
}

/// `rproc run` of it, to be ended with [`finish`].
pub(super) fn steady(namespace: &Namespace, server: &str) -> Program {
    let filler = filler();
    let script = format!(
        "exec 9<> <(:); line=0; longest=0; errors=0; while [[ ! -e /tmp/end ]]; do text=; \
         for ((k = 0; k < {LINES}; k++)); do printf -v one '%09d {filler}\\n' $((line++)); text+=$one; done; \
         before=${{EPOCHREALTIME/./}}; printf %s \"$text\" || ((errors++)); after=${{EPOCHREALTIME/./}}; \
         ((after - before > longest)) && ((longest = after - before)); read -t 0.0085 -u 9; done; \
         echo \"lines=$line longest=$longest errors=$errors\" >&2; exit {CODE}"
    );
    let [image, policy] = image_arguments(glibc());
    let run = [
        "--server", server, "run", NAME, &image, &policy, "--", "bash", "-c", &script,
    ];
    namespace.editor.rproc(&run)
}

/// Ends the program. Fails unless every byte that it wrote arrived, with the exit code and the seal.
pub(super) fn finish(namespace: &Namespace, run: Running) -> Result<Noticed> {
    namespace.in_container(NAME, "touch /tmp/end")?;
    let finished = run.finish()?;
    finished.expect_code(CODE)?;
    let said = String::from_utf8_lossy(&finished.err_of_program()).into_owned();
    let number = |key: &str| -> Result<u64> {
        let text = said.split_whitespace().find_map(|word| word.strip_prefix(key));
        text.and_then(|text| text.parse().ok())
            .with_context(|| format!("{key} in {said:?}"))
    };
    compare(&finished, number("lines=")?)?;
    let status = namespace.wait_finished(NAME)?["status"].clone();
    let output = &status["attempts"][0]["output"];
    ensure!(output["sealed"] == true, "{status:#}");
    ensure!(output["stdout"]["sha256"] == sha256(&finished.stdout), "{status:#}");
    Ok(Noticed {
        bytes: finished.stdout.len(),
        longest: Duration::from_micros(number("longest=")?),
        errors: number("errors=")?,
    })
}

fn compare(finished: &Finished, lines: u64) -> Result<()> {
    let filler = filler();
    let expected: String = (0..lines).map(|line| format!("{line:09} {filler}\n")).collect();
    let differs = finished
        .stdout
        .iter()
        .zip(expected.as_bytes())
        .position(|(got, wrote)| got != wrote);
    ensure!(
        finished.stdout == expected.as_bytes(),
        "{} bytes arrived, {} were written, the first other one is {differs:?}",
        finished.stdout.len(),
        expected.len(),
    );
    Ok(())
}

fn filler() -> String {
    "x".repeat(LINE - 11)
}
