//! Each change of a process and all of its output reach a sink, in order, whichever part dies.

use std::collections::BTreeMap;
use std::env;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use remoteprocess_e2e::{
    Namespace, Sink, condition, is_development_cluster, is_long, kill_operators, sha256, spec, until,
    wait_for_operator, with_temp_ns,
};
use serde_json::{Value, json};

use super::broker::Broker as _;
use super::nats::Nats;

/// Least time in which the stream drops a message with the same id: the test wants to see repetitions.
const WINDOW: Duration = Duration::from_millis(100);
/// Lines on both streams for some seconds, then bytes, and a long line that does not end.
const SCRIPT: &str = "for i in $(seq 1 15); do echo \"line $i\"; echo \"warning $i\" >&2; sleep 0.2; done; \
                      head -c 20000 /dev/urandom; head -c 40000 /dev/zero | tr '\\0' x; exit $CODE";
/// Something dies after this many events of each process, in all: a third of them, because most arrive while a part is away.
const EVENTS: usize = 40;

/// How much is done.
struct Size {
    processes: usize,
    at_once: usize,
    /// What dies, in this order.
    faults: Vec<Fault>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    Bridge,
    Broker,
    Operator,
}

impl Size {
    fn chosen() -> Self {
        use Fault::{Bridge, Broker, Operator};
        let part = [Bridge, Bridge, Broker, Bridge];
        if is_long() {
            let faults = [part, part, part].concat();
            Self {
                processes: 200,
                at_once: 12,
                faults: [faults, vec![Operator, Bridge]].concat(),
            }
        } else {
            Self {
                processes: 6,
                at_once: 3,
                faults: vec![Bridge, Broker, Operator, Bridge],
            }
        }
    }
}

/// Creates a process. Each third one fails, and has another attempt.
fn create(namespace: &Namespace, number: usize) -> Result<()> {
    let code = if number.is_multiple_of(3) { "3" } else { "0" };
    let more = json!({
        "env": [{"name": "CODE", "value": code}],
        "retries": {"limit": 1, "after": ["ProcessFailure"], "backoff": {"initialSeconds": 0}},
    });
    let object = json!({
        "apiVersion": "remoteprocess.dev/v1alpha1", "kind": "RemoteProcess",
        "metadata": {"name": format!("run-{number}"), "labels": {"events": "wanted"}},
        "spec": spec(SCRIPT, more),
    });
    let create = namespace.editor.kubectl(&["create", "--filename=-"]);
    create.input(object.to_string()).succeed()?;
    Ok(())
}

/// What has arrived of a process: its events, each once, in the order in which they arrived first.
#[derive(Default)]
struct Arrived {
    events: Vec<Value>,
    repeated: usize,
}

impl Arrived {
    fn add(&mut self, event: Value) -> Result<()> {
        let known = self.events.iter().find(|known| known["id"] == event["id"]);
        match known {
            Some(known) => {
                ensure!(*known == event, "the same id, and another event:\n{known}\n{event}");
                self.repeated += 1;
            }
            None => self.events.push(event),
        }
        Ok(())
    }

    fn is_finished(&self) -> bool {
        let is_last = |event: &Value| event["type"] == "dev.remoteprocess.process.finished.v1";
        self.events.last().is_some_and(is_last)
    }

    /// The order and the number of the events, compared with what the object says.
    fn check(&self, object: &Value) -> Result<()> {
        let attempts = object["status"]["attempts"].as_array().context("attempts")?;
        let mut wanted = vec![(0, 0)];
        wanted.extend((1..=attempts.len()).flat_map(|attempt| [1, 2, 4].map(|stage| (attempt, stage))));
        wanted.push((usize::MAX, 0));
        let places = self.events.iter().map(place).collect::<Result<Vec<_>>>()?;
        ensure!(places.is_sorted(), "{places:?}");
        let transitions: Vec<_> = places.into_iter().filter(|place| place.1 != OUTPUT).collect();
        ensure!(transitions == wanted, "{transitions:?} instead of {wanted:?}");
        for attempt in attempts {
            for stream in ["stdout", "stderr"] {
                let output = self.output(&attempt["number"], stream)?;
                let sealed = &attempt["output"][stream];
                ensure!(
                    sealed["bytes"] == output.len(),
                    "{stream}: {} bytes, {sealed}",
                    output.len()
                );
                ensure!(sealed["sha256"] == sha256(&output), "{stream}: {sealed}");
            }
        }
        Ok(())
    }

    /// The output of an attempt, put together again.
    fn output(&self, attempt: &Value, stream: &str) -> Result<Vec<u8>> {
        let mut output = Vec::new();
        let data = self.events.iter().map(|event| &event["data"]);
        for data in data.filter(|data| data["stream"] == stream && data["attempt"] == *attempt) {
            ensure!(data["offset"] == output.len(), "byte {} is next: {data}", output.len());
            match (data["text"].as_str(), data["dataBase64"].as_str()) {
                (Some(text), None) => output.extend_from_slice(text.as_bytes()),
                (None, Some(text)) => output.extend(BASE64_STANDARD.decode(text)?),
                _ => bail!("{data}"),
            }
        }
        Ok(output)
    }
}

/// Stage of an attempt for its output.
const OUTPUT: usize = 3;

/// The place of an event in the life of its process: the attempt, and the stage of it.
fn place(event: &Value) -> Result<(usize, usize)> {
    let kind = event["type"].as_str().unwrap_or_default();
    let kind = kind.strip_prefix("dev.remoteprocess.process.").unwrap_or_default();
    let attempt = usize::try_from(event["data"]["attempt"].as_u64().unwrap_or_default())?;
    Ok(match kind {
        "created.v1" => (0, 0),
        "starting.v1" => (attempt, 1),
        "started.v1" => (attempt, 2),
        "output.v1" => (attempt, OUTPUT),
        "attempt-ended.v1" => (attempt, 4),
        "finished.v1" => (usize::MAX, 0),
        _ => bail!("an event that is not expected here: {event}"),
    })
}

/// Everything that has arrived, by the name of the process.
#[derive(Default)]
struct Inbox {
    processes: BTreeMap<String, Arrived>,
    read: usize,
}

impl Inbox {
    fn read(&mut self, nats: &Nats) -> Result<()> {
        for event in nats.messages("EVENTS", self.read)? {
            self.read += 1;
            let name = event["subject"].as_str().context("a subject")?.to_owned();
            self.processes.entry(name).or_default().add(event)?;
        }
        Ok(())
    }

    fn finished(&self) -> usize {
        self.processes.values().filter(|arrived| arrived.is_finished()).count()
    }
}

/// Runs all processes, and lets parts die as events arrive. Many events can come at once after a part was away, so more
/// processes follow until each part has died.
fn run(namespace: &Namespace, sink: &Sink<'_>, nats: &mut Nats, size: &Size) -> Result<Inbox> {
    let (mut inbox, mut created, mut faults) = (Inbox::default(), 0, size.faults.iter());
    let step = size.processes * EVENTS / (size.faults.len() + 1);
    let mut next = step;
    until("the last event of each process", Duration::from_secs(800), || {
        inbox.read(nats)?;
        let is_enough = faults.len() == 0 || created == 4 * size.processes;
        while (created < size.processes || !is_enough) && created - inbox.finished() < size.at_once {
            create(namespace, created)?;
            created += 1;
        }
        if inbox.read >= next
            && let Some(fault) = faults.next()
        {
            next = inbox.read + step;
            match fault {
                Fault::Bridge => sink.kill_bridge()?,
                Fault::Broker => nats.restart()?,
                Fault::Operator => kill_operators().and_then(|()| wait_for_operator())?,
            }
        }
        Ok(created >= size.processes && inbox.finished() == created)
    })?;
    ensure!(faults.next().is_none(), "not everything died: {} events", inbox.read);
    Ok(inbox)
}

#[test]
fn each_change_and_all_output_arrive_in_order_while_bridge_broker_and_operator_die() {
    let Ok(program) = env::var("RPROC_NATS_SERVER") else {
        println!("LEFT OUT: RPROC_NATS_SERVER is not set; `cargo xtask test` sets it");
        return;
    };
    if !is_development_cluster("a broker on the node") {
        return;
    }
    with_temp_ns("sink", |namespace| {
        let mut nats = Nats::start(&program)?;
        nats.add("events", WINDOW)?;
        let sink = Sink::prepare(namespace, "events")?;
        let destination = json!({"nats": {"servers": [nats.url], "subject": "events"}});
        let more = json!({"selector": {"matchLabels": {"events": "wanted"}}, "output": {"as": "Lines"}});
        sink.apply(&sink.object(&destination, more)).succeed()?;
        namespace
            .apply("other", spec("echo not selected", json!({})))
            .succeed()?;
        sink.wait_for("Ready", "True", "", 90)?;
        let size = Size::chosen();
        let inbox = run(namespace, &sink, &mut nats, &size)?;
        for (name, arrived) in &inbox.processes {
            let object = namespace.wait_finished(name)?;
            arrived.check(&object).with_context(|| name.clone())?;
        }
        until("a status that says so", Duration::from_secs(30), || {
            let status = sink.status()?;
            Ok(status["waiting"] == 0 && condition(&status, "Ready")["status"] == "True")
        })?;
        let repeated: usize = inbox.processes.values().map(|arrived| arrived.repeated).sum();
        println!(
            "{} processes, {:?}: {} events, of which {repeated} are repetitions",
            inbox.processes.len(),
            size.faults,
            inbox.read
        );
        Ok(())
    });
}
