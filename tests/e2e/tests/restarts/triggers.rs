//! Each message becomes one process, whichever part dies, and its result arrives once.

use std::collections::BTreeMap;
use std::env;
use std::fmt::Display;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use async_nats::HeaderMap;
use futures::TryStreamExt;
use remoteprocess_e2e::{
    Namespace, Trigger, condition, delete_operator_pods, is_development_cluster, is_long, spec, until,
    wait_for_operator, with_temp_ns,
};
use serde_json::{Value, json};

use super::journal::Journal;
use super::nats::Nats;

/// Most processes at once.
const MOST: usize = 5;

/// What the test does with the broker.
impl Nats {
    /// Publishes a message with this number or name, confirmed by the server.
    fn order(&self, number: impl Display) -> Result<()> {
        let mut headers = HeaderMap::new();
        headers.insert("order-id", format!("order-{number}").as_str());
        let payload = format!("order {number}");
        self.runtime.block_on(async {
            let published = self.context.publish_with_headers("orders", headers, payload.into());
            published.await?.await?;
            Ok(())
        })
    }

    /// How often there is a result for each id, and what it says about the last one.
    fn results(&self) -> Result<BTreeMap<String, (usize, Value)>> {
        let mut results: BTreeMap<String, (usize, Value)> = BTreeMap::new();
        for mut event in self.messages("RESULTS", 0)? {
            let id = event["data"]["messageId"].as_str().context("an id")?.to_owned();
            let result = results.entry(id).or_default();
            *result = (result.0 + 1, event["data"].take());
        }
        Ok(results)
    }

    /// Messages that the bridge has not acknowledged.
    fn unsettled(&self) -> Result<u64> {
        self.runtime.block_on(async {
            let stream = self.context.get_stream("ORDERS").await?;
            let consumers: Vec<_> = stream.consumers().try_collect().await?;
            ensure!(consumers.len() == 1, "{consumers:?}");
            Ok(consumers[0].num_pending + consumers[0].num_ack_pending as u64)
        })
    }
}

/// A program that adds its message to the journal, and fails at the poison until that is mended.
const SCRIPT: &str = "echo \"$(cat $MESSAGE)\" >> /journal/ran; \
                      if grep -q poison $MESSAGE && [ ! -e /journal/mended ]; then exit 3; fi; \
                      echo \"done: $RPROC_MESSAGE_ID\"";

fn running(trigger: &Trigger<'_>) -> Result<usize> {
    let is_final = |process: &&Value| condition(&process["status"], "Finished")["status"] == "True";
    Ok(trigger.processes()?.iter().filter(|process| !is_final(process)).count())
}

/// Each message has run once, has one process and one result.
fn once_each(nats: &Nats, journal: &Journal, trigger: &Trigger<'_>, count: usize) -> Result<()> {
    let runs = journal.read()?;
    ensure!(runs.len() == count && runs.values().all(|runs| *runs == 1), "{runs:?}");
    ensure!(trigger.processes()?.len() == count, "one process for each message");
    for (id, (times, data)) in nats.results()? {
        ensure!(times == 1, "{id}: {times} results");
        ensure!(data["outcome"] == "Succeeded", "{data:#}");
        let tail = data["tail"].as_str().unwrap_or_default();
        ensure!(tail.contains(&format!("done: {id}")), "{data:#}");
    }
    Ok(())
}

/// A message whose process fails is a dead letter. `rproc trigger replay` takes it back, and it runs once more.
fn a_dead_letter_runs_again(
    namespace: &Namespace,
    nats: &Nats,
    journal: &Journal,
    trigger: &Trigger<'_>,
) -> Result<()> {
    let replay = |more: &[&str]| {
        let replay = [&["trigger", "replay", "orders"], more].concat();
        namespace.editor.rproc(&replay).succeed()
    };
    let before = trigger.processes()?.len();
    nats.order("poison")?;
    until("a dead letter", Duration::from_secs(120), || {
        Ok(nats.count("LETTERS")? == 1)
    })?;
    ensure!(replay(&["--dry-run"])? == "1 dead letter\n", "a dry run");
    ensure!(nats.count("LETTERS")? == 1, "a dry run takes nothing");
    journal.mend()?;
    ensure!(replay(&[])? == "1 dead letter sent, 0 left\n", "a replay");
    let result = || -> Result<_> { Ok(nats.results()?.remove("order-poison").unwrap_or_default()) };
    until("another result", Duration::from_secs(120), || Ok(result()?.0 == 2))?;
    ensure!(result()?.1["outcome"] == "Succeeded", "{:#}", result()?.1);
    ensure!(journal.read()?.get("order poison") == Some(&2), "{:?}", journal.read()?);
    let all = trigger.processes()?;
    let is_failed = |process: &&Value| process["status"]["phase"] == "Failed";
    let failed = all.iter().find(is_failed).context("a process that failed")?;
    let replay_of = |process: &&Value| {
        process["metadata"]["annotations"]["remoteprocess.dev/replay-of"] == failed["metadata"]["uid"]
    };
    ensure!(
        all.len() == before + 2 && all.iter().filter(replay_of).count() == 1,
        "{all:#?}"
    );
    ensure!(replay(&[])? == "0 dead letters sent, 0 left\n", "nothing is left");
    Ok(())
}

#[test]
fn each_message_runs_once_while_bridge_and_operator_are_killed() {
    let Ok(program) = env::var("RPROC_NATS_SERVER") else {
        println!("LEFT OUT: RPROC_NATS_SERVER is not set; `cargo xtask test` sets it");
        return;
    };
    if !is_development_cluster("a broker and a file on the node") {
        return;
    }
    with_temp_ns("nats", |namespace| {
        let (nats, journal) = (Nats::start(&program)?, Journal::new(namespace));
        for subject in ["orders", "results", "letters"] {
            nats.add(subject, Duration::ZERO)?;
        }
        let trigger = Trigger::prepare(namespace, "orders")?;
        let source = json!({"nats": {
            "servers": [nats.url], "stream": "ORDERS", "resultSubject": "results", "deadLetterSubject": "letters",
        }});
        let more = json!({
            "message": {"id": "Header", "idHeader": "order-id"}, "policy": {"maxRunning": MOST},
        });
        trigger
            .apply(&trigger.object(&source, &spec(SCRIPT, journal.mount()), more))
            .succeed()?;
        let count = if is_long() { 1000 } else { 30 };
        for number in 0..count {
            nats.order(number)?;
            // One in six is sent twice.
            if number % 6 == 0 {
                nats.order(number)?;
            }
        }
        trigger.wait_for("Ready", "True", "", 90)?;
        let mut disturbances = if is_long() { 10 } else { 2 };
        let step = count / (disturbances + 1);
        until("a result of each message", Duration::from_secs(800), || {
            let (running, results) = (running(&trigger)?, nats.results()?.len());
            ensure!(running <= MOST, "{running} processes at once");
            if disturbances > 0 && results > count - disturbances * step {
                disturbances -= 1;
                match disturbances % 2 {
                    0 => delete_operator_pods().and_then(|()| wait_for_operator())?,
                    _ => trigger.kill_bridge()?,
                }
            }
            Ok(results == count)
        })?;
        until("acknowledgements", Duration::from_secs(30), || {
            Ok(nats.unsettled()? == 0)
        })?;
        once_each(&nats, &journal, &trigger, count)?;
        a_dead_letter_runs_again(namespace, &nats, &journal, &trigger)?;
        // The bridge writes its counts every few seconds.
        until("a status that says so", Duration::from_secs(20), || {
            Ok(trigger.status()?["running"] == 0)
        })?;
        let status = trigger.status()?;
        println!(
            "{count} messages, each run once, with {} duplicates: {status}",
            count.div_ceil(6)
        );
        Ok(())
    });
}
