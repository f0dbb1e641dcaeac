//! Each message becomes one process, whichever part dies, and its result arrives once.
//!
//! RabbitMQ and Pub/Sub do not drop a result that a bridge sends again because it died, or the broker did, before the
//! confirmation: such a repetition has the id of the first one, and is counted.

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use remoteprocess_e2e::{
    Namespace, Trigger, is_development_cluster, kill_operators, spec, until, wait_for_operator, with_temp_ns,
};
use serde_json::{Value, json};

use super::broker::Broker;
use super::journal::Journal;
use super::kills::{Kill, Part, Size, seed};
use super::nats::Nats;
use super::pubsub::PubSub;
use super::rabbitmq::RabbitMq;

/// Most processes at once.
const MOST: usize = 5;

/// Most pods of processes that have ended, more or less.
const MOST_PODS: usize = 50;

/// A program that adds its message to the journal, and fails at the poison until that is mended.
const SCRIPT: &str = "echo + >> /journal/at-once; echo \"$(cat $MESSAGE)\" >> /journal/ran; \
                      echo \"done: $RPROC_MESSAGE_ID\"; echo - >> /journal/at-once; \
                      if grep -q poison $MESSAGE && [ ! -e /journal/mended ]; then exit 3; fi";

/// The results that have arrived.
#[derive(Default)]
struct Results {
    /// By the id of the event: how often, and their data.
    by_id: BTreeMap<String, (usize, Value)>,
    /// Names of processes that still have a pod.
    with_pod: Vec<String>,
}

impl Results {
    fn read(&mut self, broker: &mut impl Broker) -> Result<()> {
        for mut event in broker.new_results()? {
            let id = event["id"].as_str().context("an id")?.to_owned();
            let data = event["data"].take();
            let name = data["name"].as_str().context("a name")?.to_owned();
            let (times, known) = self.by_id.entry(id).or_insert_with(|| (0, data.clone()));
            ensure!(*known == data, "the same id, and another result:\n{known}\n{data}");
            *times += 1;
            if *times == 1 {
                self.with_pod.push(name);
            }
        }
        Ok(())
    }

    fn repeated(&self) -> usize {
        self.by_id.values().map(|(times, _)| times - 1).sum()
    }

    /// Those of a message.
    fn of(&self, message_id: &str) -> Vec<&Value> {
        let data = self.by_id.values().map(|(_, data)| data);
        data.filter(|data| data["messageId"] == message_id).collect()
    }
}

/// A trigger whose messages are sent, and what comes of them.
struct Run<'a, B> {
    broker: B,
    journal: Journal,
    trigger: Trigger<'a>,
    results: Results,
    size: Size,
}

impl<'a, B: Broker> Run<'a, B> {
    /// Makes the trigger, and sends all messages. Of those that are sent twice, every second one is sent again at once, and
    /// the others when all were sent.
    fn begin(namespace: &'a Namespace, mut broker: B, size: Size) -> Result<Self> {
        let (journal, size) = (Journal::new(namespace), size.or_larger()?);
        let trigger = Trigger::prepare(namespace, "orders")?;
        let more = json!({
            "message": {"id": "Header", "idHeader": "order-id"}, "policy": {"maxRunning": MOST},
        });
        let template = spec(SCRIPT, journal.mount());
        trigger
            .apply(&trigger.object(&broker.source(), &template, more))
            .succeed()?;
        let (at_once, later): (Vec<_>, Vec<_>) = (0..size.messages)
            .filter(|number| Size::is_sent_twice(*number))
            .partition(|number| number % 40 == 0);
        for number in 0..size.messages {
            broker.order(&number.to_string())?;
            if at_once.contains(&number) {
                broker.order(&number.to_string())?;
            }
        }
        for number in later {
            broker.order(&number.to_string())?;
        }
        trigger.wait_for("Ready", "True", "", 300)?;
        Ok(Self {
            broker,
            journal,
            trigger,
            results: Results::default(),
            size,
        })
    }

    /// Lets parts die until there is a result of each message.
    fn survive(&mut self) -> Result<()> {
        let (begin, seed) = (Instant::now(), seed()?);
        println!("{}: RPROC_SEED={seed} plans the same kills", B::NAME);
        let plan = self.size.plan(seed);
        let mut kills = plan.iter();
        let (mut next, mut looked) = (kills.next(), begin);
        // The more processes there are, the more a look at them costs, which delays what is tested.
        let pause = Duration::from_millis(self.size.messages as u64);
        until("a result of each message", self.size.deadline(), || {
            self.results.read(&mut self.broker)?;
            let arrived = self.results.by_id.len();
            if looked.elapsed() >= pause {
                let running = self.trigger.running()?;
                ensure!(running <= MOST, "{running} processes at once");
                looked = Instant::now();
            }
            if let Some(kill) = next.filter(|kill| arrived >= kill.after) {
                if kill.after == plan[0].after {
                    self.check_what_waits()?;
                }
                self.kill(kill, begin.elapsed(), arrived)?;
                next = kills.next();
            }
            // Pods that have ended slow a node down when there are hundreds.
            if self.results.with_pod.len() >= MOST_PODS {
                self.trigger.delete_pods(&self.results.with_pod)?;
                self.results.with_pod.clear();
            }
            Ok(next.is_none() && arrived >= self.size.messages)
        })?;
        println!(
            "{}: {} messages, {} of them sent twice, and {} kills: {:?}",
            B::NAME,
            self.size.messages,
            self.size.repeated(),
            self.size.kills,
            begin.elapsed()
        );
        Ok(())
    }

    fn kill(&mut self, kill: &Kill, after: Duration, arrived: usize) -> Result<()> {
        println!("{}: {after:.0?}, {arrived} results: kill {:?}", B::NAME, kill.part);
        match kill.part {
            Part::Bridge => self.trigger.kill_bridge(),
            Part::Operator => kill_operators().and_then(|()| wait_for_operator()),
            Part::Broker => self.broker.restart(),
        }
    }

    /// Before anything was killed: what does not run yet waits in the broker, and the first messages came first.
    fn check_what_waits(&mut self) -> Result<()> {
        let waiting = self.broker.waiting()?;
        let processes = self.trigger.processes()?;
        if let Some(waiting) = waiting {
            let sent = self.size.messages + self.size.repeated();
            let taken = sent - usize::try_from(waiting)?;
            // The bridge takes one message at a time, and those that were sent twice have no process of their own.
            let explained = processes.len() + self.size.repeated() + 1;
            ensure!(
                taken <= explained,
                "{taken} messages were taken, {explained} have a reason"
            );
        }
        if B::KEEPS_ORDER {
            let ids: BTreeSet<String> = processes.iter().map(message_id).collect::<Result<_>>()?;
            let first = (0..processes.len()).map(|number| format!("order-{number}")).collect();
            ensure!(ids == first, "they are not the first ones: {ids:?}");
        }
        Ok(())
    }

    /// Each message has run once, has one process and one result, and there were never too many at once.
    fn check(&mut self) -> Result<()> {
        let count = self.size.messages;
        let runs = self.journal.read()?;
        ensure!(
            runs.len() == count && runs.values().all(|runs| *runs == 1),
            "{} of {count} messages have run; more than once: {:?}",
            runs.len(),
            runs.iter().filter(|(_, runs)| **runs > 1).collect::<Vec<_>>()
        );
        let most = self.journal.most_at_once()?;
        ensure!(most <= MOST, "{most} programs at once");
        let processes = self.trigger.processes()?;
        ensure!(
            processes.len() == count,
            "{} processes of {count} messages",
            processes.len()
        );
        let ids: BTreeSet<String> = processes.iter().map(message_id).collect::<Result<_>>()?;
        ensure!(ids.len() == count, "processes of {} messages", ids.len());
        ensure!(
            self.results.by_id.len() == count,
            "{} results",
            self.results.by_id.len()
        );
        for process in &processes {
            let (uid, id) = (
                process["metadata"]["uid"].as_str().context("a uid")?,
                message_id(process)?,
            );
            let (_, data) = self
                .results
                .by_id
                .get(uid)
                .with_context(|| format!("no result of {id}"))?;
            ensure!(data["messageId"] == *id, "{id}: {data:#}");
            ensure!(data["outcome"] == "Succeeded", "{data:#}");
            let tail = data["tail"].as_str().unwrap_or_default();
            ensure!(tail.contains(&format!("done: {id}")), "{data:#}");
        }
        let repeated = self.results.repeated();
        ensure!(
            repeated == 0 || !B::DROPS_REPETITIONS,
            "{repeated} results arrived again"
        );
        println!(
            "{}: at most {most} programs at once, {repeated} results sent again",
            B::NAME
        );
        Ok(())
    }

    /// Nothing is left in the broker, and what is deleted comes to its end.
    fn end(mut self) -> Result<()> {
        // The bridge writes its counts every few seconds.
        until("a status that says so", Duration::from_secs(20), || {
            Ok(self.trigger.status()?["running"] == 0)
        })?;
        println!("{}: {}", B::NAME, self.trigger.status()?);
        self.trigger.delete()?;
        let unsettled = self.broker.unsettled()?;
        ensure!(unsettled == 0, "{unsettled} messages are not acknowledged");
        self.results.read(&mut self.broker)
    }
}

fn message_id(process: &Value) -> Result<String> {
    let id = &process["metadata"]["annotations"]["remoteprocess.dev/message-id"];
    Ok(id.as_str().context("a process without a message")?.to_owned())
}

/// A message whose process fails is a dead letter. `rproc trigger replay` takes it back, and it runs once more.
fn a_dead_letter_runs_again(namespace: &Namespace, run: &mut Run<'_, Nats>) -> Result<()> {
    let replay = |more: &[&str]| {
        let replay = [&["trigger", "replay", "orders"], more].concat();
        namespace.editor.rproc(&replay).succeed()
    };
    let before = run.trigger.processes()?.len();
    run.broker.order("poison")?;
    until("a dead letter", Duration::from_secs(120), || {
        Ok(run.broker.count("LETTERS")? == 1)
    })?;
    ensure!(replay(&["--dry-run"])? == "1 dead letter\n", "a dry run");
    ensure!(run.broker.count("LETTERS")? == 1, "a dry run takes nothing");
    run.journal.mend()?;
    ensure!(replay(&[])? == "1 dead letter sent, 0 left\n", "a replay");
    until("another result", Duration::from_secs(120), || {
        run.results.read(&mut run.broker)?;
        Ok(run.results.of("order-poison").len() == 2)
    })?;
    let results = run.results.of("order-poison");
    let count = |outcome: &str| results.iter().filter(|data| data["outcome"] == outcome).count();
    ensure!(count("Failed") == 1 && count("Succeeded") == 1, "{results:#?}");
    let runs = run.journal.read()?;
    ensure!(runs.get("order poison") == Some(&2), "{runs:?}");
    let all = run.trigger.processes()?;
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

/// The program of a broker, if it is there and parts of this cluster may be killed.
fn program(variable: &str) -> Option<String> {
    let Ok(program) = env::var(variable) else {
        println!("LEFT OUT: {variable} is not set; `cargo xtask test` sets it");
        return None;
    };
    is_development_cluster("a broker and a file on the node").then_some(program)
}

#[test]
fn each_message_of_nats_runs_once_while_bridge_operator_and_broker_are_killed() {
    let Some(program) = program("RPROC_NATS_SERVER") else {
        return;
    };
    with_temp_ns("nats", |namespace| {
        let nats = Nats::start(&program)?;
        for subject in ["orders", "results", "letters"] {
            nats.add(subject, Duration::ZERO)?;
        }
        let mut run = Run::begin(namespace, nats, Size::SMALL)?;
        run.survive()?;
        run.check()?;
        a_dead_letter_runs_again(namespace, &mut run)?;
        run.end()
    });
}

#[test]
fn each_message_of_rabbitmq_runs_once_while_bridge_operator_and_broker_are_killed() {
    let Some(program) = program("RPROC_RABBITMQ_SERVER") else {
        return;
    };
    with_temp_ns("rabbitmq", |namespace| {
        let mut run = Run::begin(namespace, RabbitMq::start(&program)?, Size::SMALLEST)?;
        run.survive()?;
        run.check()?;
        run.end()
    });
}

/// The emulator keeps everything in its memory, so it is not killed: what dies are all connections to it.
#[test]
fn each_message_of_pubsub_runs_once_while_bridge_and_operator_are_killed() {
    let Some(program) = PubSub::program() else {
        println!("LEFT OUT: no Pub/Sub emulator; RPROC_PUBSUB_EMULATOR can name one");
        return;
    };
    if !is_development_cluster("a broker and a file on the node") {
        return;
    }
    with_temp_ns("pubsub", |namespace| {
        let mut run = Run::begin(namespace, PubSub::start(&program)?, Size::SMALLEST)?;
        run.survive()?;
        run.check()?;
        run.end()
    });
}
