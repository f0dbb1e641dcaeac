//! The API server hangs.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use remoteprocess_e2e::{BUSYBOX, image_arguments, until};

use super::steady::{self, steady};
use super::{Stopped, let_pass, relay, scenario};
use crate::proxy::{Harm, Proxy, Target};

/// Time for the status to catch up afterwards.
const CATCH_UP: Duration = Duration::from_secs(10);

/// The API server is stopped for 35 s, or 60 s: open streams continue without a break, a process that ends in the
/// meantime is reported to its followers, and its status is updated within 10 s after the API server is back.
///
/// # Errors
/// When one of these does not hold.
pub fn api_server(long: bool) -> Result<()> {
    let outage = Duration::from_secs(if long { 60 } else { 35 });
    scenario("api-server", |namespace| {
        let proxy = Proxy::start(Target::Fixed(relay()?), Harm::default(), 0)?;
        let server = proxy.address().to_string();
        let mut stream = steady(namespace, &server).within(4 * outage).start()?;
        let [image, policy] = image_arguments(BUSYBOX);
        let script = "echo begin; sleep 10; echo end; exit 5";
        let short = [
            "--server", &server, "run", "short", &image, &policy, "--", "sh", "-c", script,
        ];
        let mut short = namespace.editor.rproc(&short).within(4 * outage).start()?;
        stream.wait_for_bytes(1000)?;
        short.wait_for_bytes(6)?;
        let before = proxy.connections();
        let stopped = Stopped::daemon("kube-apiserver")?;
        let begin = Instant::now();
        let at_first = stream.received();
        let finished = short.finish()?;
        ensure!(finished.expect_code(5)?.out() == "begin\nend\n", "{finished}");
        ensure!(begin.elapsed() < outage, "the end came after the outage");
        let_pass(outage.saturating_sub(begin.elapsed()));
        let meanwhile = stream.received() - at_first;
        let cuts = proxy.connections() - before;
        drop(stopped);
        let back = Instant::now();
        until("the status of what ended meanwhile", 6 * CATCH_UP, || {
            // The API server itself needs a moment.
            let phase = namespace
                .object("short")
                .ok()
                .map(|object| object["status"]["phase"] == "Failed");
            Ok(phase == Some(true))
        })?;
        let caught_up = back.elapsed();
        let noticed = steady::finish(namespace, stream)?;
        ensure!(cuts == 0, "{cuts} further connections were made during the outage");
        ensure!(
            meanwhile > steady::RATE * (outage.as_secs() as usize - 10),
            "only {meanwhile} bytes came during the outage"
        );
        ensure!(caught_up < CATCH_UP, "the status needed {caught_up:?}");
        ensure!(noticed.errors == 0, "the program saw {} errors", noticed.errors);
        Ok(format!(
            "{meanwhile} bytes during {outage:?} without it, 0 cuts; status {:.1} s after its return",
            caught_up.as_secs_f64()
        ))
    })
}
