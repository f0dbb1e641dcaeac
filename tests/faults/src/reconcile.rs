//! The controller, and the relay's writes, against a real API server: whole lives of processes, each repeated once for
//! every call that changes something and for every event of a watch, with a fault at that point. The last status is the
//! same each time, no attempt has two pods, none is launched twice, and nothing stays open.

mod line;
mod pod;
mod scenarios;
mod world;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use futures::future::join_all;
use futures::stream::{self, StreamExt};
use k8s_openapi::api::core::v1::{Namespace, ResourceRequirements, ServiceAccount};
use kube::api::PostParams;
use kube::{Api, Client};
use remoteprocess_operator::controller::{self, AgentSettings, Config};
use remoteprocess_operator::directory::Directory;
use remoteprocess_operator::relay::status::Recorder;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use line::{Fault, Line};
use scenarios::{SCENARIOS, Scenario};
use world::{NAME, Replica, World};

/// Number of simultaneous runs.
const CONCURRENCY: usize = 32;
/// Time limit for one run.
const LIMIT: Duration = Duration::from_secs(50);
/// After the end, this long nothing may happen that should not.
const REST: Duration = Duration::from_millis(200);

/// One run of a scenario.
struct Point {
    scenario: &'static Scenario,
    fault: Fault,
    /// Operators that all believe that they lead.
    leaders: usize,
}

/// The result of a run.
struct Outcome {
    /// The last status, without what differs from run to run; `None` if the object is gone.
    status: Option<Value>,
    calls: usize,
    events: usize,
    has_struck: bool,
}

/// Runs the scenarios whose names contain `only` on the API server of `KUBECONFIG`, which must have no other user, and
/// prints a table.
///
/// # Errors
/// When a result differs, or a run does not finish.
pub fn run(long: bool, only: &str) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let server = Client::try_default().await.context("no way to an API server")?;
        run_all(server, long, only).await
    })
}

async fn run_all(server: Client, long: bool, only: &str) -> Result<()> {
    println!("==> reconcile");
    let chosen: Vec<_> = (0..SCENARIOS.len())
        .filter(|index| SCENARIOS[*index].name.contains(only))
        .collect();
    ensure!(!chosen.is_empty(), "no scenario has {only:?} in its name");
    let begin = Instant::now();
    let undisturbed = |scenario: &'static Scenario| {
        let point = Point {
            scenario,
            fault: Fault::None,
            leaders: 1,
        };
        let server = server.clone();
        async move { play(server, &point).await.with_context(|| scenario.name.to_owned()) }
    };
    let mut rows = Vec::new();
    let outcomes = join_all(chosen.iter().map(|index| undisturbed(&SCENARIOS[*index]))).await;
    for (index, outcome) in chosen.into_iter().zip(outcomes) {
        rows.push(Row::new(index, outcome?));
    }
    let points = rows
        .iter()
        .enumerate()
        .flat_map(|(at, row)| row.points(long).into_iter().map(move |point| (at, point)));
    let points: Vec<_> = points.collect();
    println!("    {} runs", points.len());
    let mut outcomes = stream::iter(points)
        .map(|(at, point)| {
            let server = server.clone();
            tokio::spawn(async move { (at, play(server, &point).await, point) })
        })
        .buffer_unordered(CONCURRENCY);
    while let Some(played) = outcomes.next().await {
        let (at, outcome, point) = played?;
        rows[at].take(&point, outcome);
    }
    report(&rows, begin.elapsed())
}

/// The results of a scenario.
struct Row {
    index: usize,
    expected: Outcome,
    points: usize,
    same: usize,
}

impl Row {
    fn new(index: usize, expected: Outcome) -> Self {
        Self {
            index,
            expected,
            points: 0,
            same: 0,
        }
    }

    /// All points. In the CI size a death follows each call; every second call, and every second event, also has one of
    /// the other faults, in turn.
    fn points(&self, long: bool) -> Vec<Point> {
        let others: [fn(usize) -> Fault; 7] = [
            Fault::DiesBefore,
            |call| Fault::Refused(call, 409),
            Fault::AnswerLost,
            Fault::StaleFromTheBeginning,
            |call| Fault::Refused(call, 429),
            Fault::StaleByOne,
            |call| Fault::Refused(call, 500),
        ];
        let of_events: [fn(usize) -> Fault; 2] = [Fault::WatchCut, Fault::WatchGone];
        let is_chosen = |at: usize, of: usize, turn: usize| {
            let turn = turn + self.index;
            long || (turn.is_multiple_of(2) && at == turn / 2 % of)
        };
        let mut faults = Vec::new();
        // One more, because not every run needs the same number of calls.
        for call in 1..=self.expected.calls + 1 {
            faults.push(Fault::DiesAfter(call));
            let chosen = others
                .iter()
                .enumerate()
                .filter(|(at, _)| is_chosen(*at, others.len(), call));
            faults.extend(chosen.map(|(_, fault)| fault(call)));
        }
        for event in 1..=self.expected.events + 1 {
            let chosen = of_events
                .iter()
                .enumerate()
                .filter(|(at, _)| is_chosen(*at, of_events.len(), event));
            faults.extend(chosen.map(|(_, fault)| fault(event)));
        }
        let point = |(fault, leaders)| Point {
            scenario: &SCENARIOS[self.index],
            fault,
            leaders,
        };
        let two = std::iter::repeat_n((Fault::None, 2), if long { 20 } else { 1 });
        faults
            .into_iter()
            .map(|fault| (fault, 1))
            .chain(two)
            .map(point)
            .collect()
    }

    fn take(&mut self, point: &Point, outcome: Result<Outcome>) {
        let name = point.scenario.name;
        match outcome {
            Ok(outcome) if point.fault != Fault::None && !outcome.has_struck => {}
            Ok(outcome) if outcome.status == self.expected.status => {
                self.points += 1;
                self.same += 1;
            }
            Ok(Outcome { status, .. }) => {
                self.points += 1;
                let (status, expected) = (
                    status.unwrap_or_default(),
                    self.expected.status.clone().unwrap_or_default(),
                );
                println!(
                    "    {name}, {:?}: {}",
                    point.fault,
                    difference(&expected, &status, "status")
                );
            }
            Err(error) => {
                self.points += 1;
                println!("    {name}, {:?}, {} leading: {error:#}", point.fault, point.leaders);
            }
        }
    }
}

fn report(rows: &[Row], took: Duration) -> Result<()> {
    println!(
        "    {:48} {:>6} {:>7} {:>7} {:>6}",
        "scenario", "calls", "events", "points", "same"
    );
    for row in rows {
        let (name, expected) = (SCENARIOS[row.index].name, &row.expected);
        let (calls, events) = (expected.calls, expected.events);
        println!("    {name:48} {calls:>6} {events:>7} {:>7} {:>6}", row.points, row.same);
        ensure!(row.points > calls, "{name}: the faults did not come about");
    }
    let sum = |of: fn(&Row) -> usize| rows.iter().map(of).sum::<usize>();
    let (points, same) = (sum(|row| row.points), sum(|row| row.same));
    println!(
        "    {same} of {points} points end the same, in {:.0} s",
        took.as_secs_f64()
    );
    if same < points {
        bail!("{} points end differently", points - same);
    }
    Ok(())
}

/// Runs a scenario in a namespace of its own.
async fn play(server: Client, point: &Point) -> Result<Outcome> {
    let namespace = prepare(&server).await?;
    let line = Line::new(server.clone(), point.fault);
    let replicas = watch::Sender::default();
    let world = World::new(
        namespace.clone(),
        point.scenario,
        line.clone(),
        server.clone(),
        replicas.subscribe(),
    );
    let operators = (0..point.leaders).map(|_| operate(&line, &namespace, &replicas));
    let story = async {
        (point.scenario.user)(&world).await?;
        world.until_over().await;
        tokio::time::sleep(REST).await;
        world.until_over().await;
        Ok::<_, anyhow::Error>(())
    };
    tokio::select! {
        told = tokio::time::timeout(LIMIT, story) => match told {
            Ok(told) => told?,
            Err(_) => bail!("not over after {LIMIT:?}: {}", describe(&world)),
        },
        error = world.live() => return Err(error.err().unwrap_or_else(|| anyhow!("the world has ended"))),
        _ = join_all(operators) => bail!("the operators have ended"),
    }
    let last = world.processes().get_opt(NAME).await?;
    Ok(Outcome {
        status: last.map(|process| comparable(json!(process.status))),
        calls: line.calls(),
        events: line.events(),
        has_struck: line.has_struck(),
    })
}

/// Creates a namespace, with the ServiceAccount that a pod needs.
async fn prepare(server: &Client) -> Result<String> {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let name = format!("run-{}", COUNT.fetch_add(1, Ordering::Relaxed));
    let namespace: Namespace = serde_json::from_value(json!({"metadata": {"name": name}}))?;
    let params = PostParams::default();
    Api::all(server.clone()).create(&params, &namespace).await?;
    let account: ServiceAccount = serde_json::from_value(json!({"metadata": {"name": "default"}}))?;
    Api::namespaced(server.clone(), &name).create(&params, &account).await?;
    Ok(name)
}

/// Runs an operator; when it dies, the next one.
async fn operate(line: &Arc<Line>, namespace: &str, replicas: &watch::Sender<Option<Replica>>) {
    loop {
        let dead = CancellationToken::new();
        let client = line.client(dead.clone());
        let config = Config {
            agent: agent(),
            ca_bundle: Arc::new(String::new),
            namespaces: vec![namespace.to_owned()],
            traces: false,
        };
        let (directory, never) = (Directory::default(), CancellationToken::new());
        let namespaces = config.namespaces.clone();
        let watched = directory.run(client.clone(), &namespaces, || {}, &never);
        let recorder = Recorder::new(client.clone(), "relay-0".to_owned());
        replicas.send_replace(Some(Replica {
            recorder,
            dead: dead.clone(),
        }));
        tokio::select! {
            () = controller::run(client.clone(), config, directory.clone(), never.clone()) => return,
            () = watched => return,
            () = dead.cancelled() => {}
        }
    }
}

fn agent() -> AgentSettings {
    AgentSettings {
        image: "agent".to_owned(),
        image_pull_policy: None,
        image_pull_secrets: vec![],
        relay: "relay:8443".to_owned(),
        relay_enroll: "relay:8444".to_owned(),
        ca_bundle: String::new(),
        trust_domain: "remoteprocess.local".to_owned(),
        drain_seconds: 30,
        listen_port: 20443,
        resources: ResourceRequirements::default(),
        handover: controller::Handover::default(),
        request_ephemeral_storage: false,
        traceparent: None,
    }
}

fn describe(world: &World) -> String {
    let seen = world.now();
    let pods: Vec<_> = seen
        .pods
        .values()
        .map(|pod| json!({"meta": pod.metadata.deletion_timestamp, "status": pod.status}))
        .collect();
    format!(
        "{} pods {}",
        json!(seen.process.map(|process| process.status)),
        json!(pods)
    )
}

/// Removes times, and the names and uids that are generated in each run.
fn comparable(mut value: Value) -> Value {
    match &mut value {
        Value::Object(fields) => {
            fields.retain(|name, _| {
                !(name.ends_with("At")
                    || ["lastTransitionTime", "duration", "podUid", "podName"].contains(&name.as_str()))
            });
            fields.values_mut().for_each(|field| *field = comparable(field.take()));
        }
        Value::Array(items) => {
            items.iter_mut().for_each(|item| *item = comparable(item.take()));
            items.sort_by_key(|item| (item["type"].to_string(), item["number"].as_u64()));
        }
        _ => {}
    }
    value
}

/// Where two values differ.
fn difference(expected: &Value, got: &Value, path: &str) -> String {
    match (expected, got) {
        (Value::Object(left), Value::Object(right)) => {
            let names = left.keys().chain(right.keys().filter(|name| !left.contains_key(*name)));
            let differing = names.filter(|name| left.get(*name) != right.get(*name));
            let all: Vec<_> = differing
                .map(|name| difference(&expected[name], &got[name], &format!("{path}.{name}")))
                .collect();
            all.join("; ")
        }
        (Value::Array(left), Value::Array(right)) if left.len() == right.len() => {
            let pairs = left
                .iter()
                .zip(right)
                .enumerate()
                .filter(|(_, (left, right))| left != right);
            let all: Vec<_> = pairs
                .map(|(at, (left, right))| difference(left, right, &format!("{path}[{at}]")))
                .collect();
            all.join("; ")
        }
        _ => format!("{path} is {got} instead of {expected}"),
    }
}
