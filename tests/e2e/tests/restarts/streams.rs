//! The operator dies or is upgraded in mid-stream, and neither the output nor the exit code shows it.

use remoteprocess_e2e::{Installation, SlowStream, delete_operator_pods, wait_for_operator, with_temp_ns};

#[test]
fn the_operator_is_killed() {
    with_temp_ns("operator-killed", |namespace| {
        let mut run = SlowStream::start(namespace)?;
        for part in [1, 100] {
            run.wait_for_bytes(part * SlowStream::PART)?;
            delete_operator_pods()?;
            wait_for_operator()?;
        }
        SlowStream::expect_whole(run)
    });
}

#[test]
fn the_release_is_upgraded() {
    with_temp_ns("upgraded", |namespace| {
        let mut run = SlowStream::start(namespace)?;
        run.wait_for_bytes(SlowStream::PART)?;
        let stamp = format!("podAnnotations.upgraded-by={}", namespace.name);
        Installation::current()?.install(&["--set-string", &stamp])?;
        SlowStream::expect_whole(run)
    });
}
