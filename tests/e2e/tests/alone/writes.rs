//! What a process costs the API server, according to its own metrics: a few writes for a run, none for an object at
//! rest. Runs alone, because the API server does not count by namespace.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use remoteprocess_e2e::{Namespace, condition, is_long, kubectl, spec, until, with_temp_ns};
use rustix::process::Signal;
use serde_json::json;

/// Number of status writes in a run without unusual waits.
const OF_A_RUN: u64 = 4;
/// Number of our Events in a run.
const EVENTS: usize = 3;

/// Number of writes of RemoteProcesses that the API server has answered since it started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Writes {
    of_status: u64,
    others: u64,
    /// Writes of the status that met another write (409) or were given up by their client (504).
    in_vain: u64,
}

impl Writes {
    fn now() -> Result<Self> {
        let metrics = kubectl(["get", "--raw=/metrics"]).succeed()?;
        let counters = metrics
            .lines()
            .filter(|line| line.starts_with("apiserver_request_total{") && line.contains("group=\"remoteprocess.dev\""))
            .filter(|line| line.contains("dry_run=\"\""))
            .filter(|line| {
                ["GET", "LIST", "WATCH"]
                    .iter()
                    .all(|verb| !line.contains(&format!("verb=\"{verb}\"")))
            });
        let mut writes = Self {
            of_status: 0,
            others: 0,
            in_vain: 0,
        };
        for line in counters {
            let count: u64 = line.rsplit(' ').next().unwrap_or_default().parse()?;
            let is_done = line.contains("code=\"2");
            match (line.contains("subresource=\"status\""), is_done) {
                (true, true) => writes.of_status += count,
                (true, false) => writes.in_vain += count,
                (false, true) => writes.others += count,
                (false, false) => {}
            }
        }
        Ok(writes)
    }

    /// Waits until there was no write for five seconds: then everything that earlier tests left has ended.
    fn at_rest() -> Result<Self> {
        let (mut last, mut since) = (Self::now()?, Instant::now());
        until("an API server at rest", Duration::from_secs(120), || {
            let now = Self::now()?;
            if now != last {
                (last, since) = (now, Instant::now());
            }
            Ok(since.elapsed() > Duration::from_secs(5))
        })?;
        Ok(last)
    }

    fn since(self, before: Self) -> Self {
        Self {
            of_status: self.of_status - before.of_status,
            others: self.others - before.others,
            in_vain: self.in_vain - before.in_vain,
        }
    }
}

#[test]
fn the_api_server_counts_few_writes_for_a_run_and_none_for_an_object_at_rest() {
    with_temp_ns("writes", |namespace| {
        let before = Writes::at_rest()?;
        let reasons = run(namespace, "counted", "sleep 2")?;
        let run = Writes::at_rest()?.since(before);
        // On a machine under load it waits for more than the usual; each reason is one write.
        let waits = reasons
            .iter()
            .filter(|reason| !["", "Waiting", "Running", "Completed"].contains(&reason.as_str()));
        let most = OF_A_RUN + waits.count() as u64;
        println!("{run:?} with the reasons {reasons:?}");
        ensure!(
            (1..=most).contains(&run.of_status),
            "{run:?} instead of {most} with the reasons {reasons:?}"
        );
        ensure!(run.in_vain == 0, "writes of the status met or were given up: {run:?}");
        let events = namespace.kubectl(&[
            "get",
            "events",
            "--output=jsonpath={range .items[*]}{.involvedObject.kind} {.reason}{\"\\n\"}{end}",
        ]);
        let events = events.succeed()?;
        let ours = events.lines().filter(|line| line.starts_with("RemoteProcess ")).count();
        ensure!((1..=EVENTS).contains(&ours), "{ours} Events of ours:\n{events}");
        ensure!(run.others == 1, "its creation is the only other write: {run:?}");

        let script = "while :; do sleep 1; done";
        namespace.apply("runs", spec(script, json!({}))).succeed()?;
        namespace.wait_running("runs")?;
        let before = Writes::at_rest()?;
        let seconds = if is_long() { 600 } else { 10 };
        let watch = namespace.kubectl(&["get", "remoteprocesses", "--watch-only", "--output=name"]);
        let watch = watch
            .arg(format!("--request-timeout={seconds}s"))
            .within(Duration::from_secs(seconds + 60));
        let seen = watch.finish()?;
        ensure!(seen.stdout.is_empty(), "{seen}");
        let idle = Writes::now()?.since(before);
        println!("{idle:?} in {seconds} s");
        ensure!(
            idle == Writes {
                of_status: 0,
                others: 0,
                in_vain: 0
            },
            "{idle:?} in {seconds} s"
        );
        Ok(())
    });
}

/// Runs a script to the end and returns the reasons that its object had.
fn run(namespace: &Namespace, name: &str, script: &str) -> Result<BTreeSet<String>> {
    let watch = [
        "get",
        "remoteprocesses",
        "--watch",
        "--output=jsonpath={.status.reason}{\"\\n\"}",
    ];
    let watch = namespace.kubectl(&watch).start()?;
    namespace.apply(name, spec(script, json!({}))).succeed()?;
    namespace.wait_for(name, "its end", 120, |status| {
        status["phase"] == "Succeeded" && condition(status, "OutputSealed")["status"] == "True"
    })?;
    watch.signal(Signal::INT)?;
    let seen = watch.finish()?.out();
    Ok(seen.lines().map(str::to_owned).collect())
}
