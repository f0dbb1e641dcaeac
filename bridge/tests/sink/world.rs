//! Processes and their output in place of the operator and the relay, and an engine that can be killed.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::future::BoxFuture;
use remoteprocess_api::ProcessSink;
use remoteprocess_api::sink::OutputStream;
use remoteprocess_bridge::sink::reader::{OutputReader, Piece, ReadError, Request};
use remoteprocess_bridge::sink::{self, Config, Metrics};
use remoteprocess_bridge::source::Secrets;
use remoteprocess_ports::free_address;
use remoteprocess_proto::v1::{Gap, GapReason};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::sync::mpsc::Sender;
use tokio::sync::mpsc::error::SendError;
use tokio::time::sleep;

use crate::cluster::{Cluster, Line, NAMESPACE, PROCESSES};
use crate::engine::Bridge;

pub(crate) const SINKS: &str = "processsinks";
/// A range of the standard output that is lost, in programs that lose one.
pub(crate) const LOST: (usize, usize) = (1000, 5000);

/// The output of an attempt.
#[derive(Clone, Default)]
struct Output {
    streams: [Vec<u8>; 2],
    has_gap: bool,
    is_over: bool,
    /// Its first bytes are lost, before a program that never stops writing.
    loses_first: bool,
    /// It never stops writing, with this pause.
    chatter: Option<Duration>,
    /// The relay knows as many bytes of the standard output, and not yet that there are more.
    unsealed_after: Option<usize>,
}

/// Output by the name of the process and the number of the attempt.
type All = BTreeMap<(String, u32), Output>;

#[derive(Clone, Default)]
pub(crate) struct Outputs {
    all: Arc<Mutex<All>>,
    is_failing: Arc<AtomicBool>,
    /// For each process, how many streams are open, and were opened.
    streams: Arc<Mutex<BTreeMap<String, (usize, usize)>>>,
    /// How long it takes until the first byte comes.
    delay: Duration,
}

impl Outputs {
    /// An archive that answers after this time.
    pub(crate) fn slow(delay: Duration) -> Self {
        Self {
            delay,
            ..Self::default()
        }
    }

    fn all(&self) -> MutexGuard<'_, All> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, name: &str, attempt: u32, change: impl FnOnce(&mut Output)) {
        change(self.all().entry((name.to_owned(), attempt)).or_default());
    }

    fn get(&self, name: &str, attempt: u32) -> Output {
        self.all().get(&(name.to_owned(), attempt)).cloned().unwrap_or_default()
    }

    /// Whether nothing can be read from now on.
    pub(crate) fn fail(&self, is_failing: bool) {
        self.is_failing.store(is_failing, Ordering::SeqCst);
    }

    /// A program that never stops writing, with this pause after each line.
    pub(crate) fn chatter(&self, name: &str, pause: Duration) {
        self.change(name, 1, |output| output.chatter = Some(pause));
    }

    /// The first bytes of such a program are lost.
    pub(crate) fn lose_first(&self, name: &str) {
        self.change(name, 1, |output| output.loses_first = true);
    }

    /// How many streams of a process are open.
    pub(crate) fn open(&self, name: &str) -> usize {
        self.streams().get(name).copied().unwrap_or_default().0
    }

    /// How many streams of a process were opened.
    pub(crate) fn opened(&self, name: &str) -> usize {
        self.streams().get(name).copied().unwrap_or_default().1
    }

    fn streams(&self) -> MutexGuard<'_, BTreeMap<String, (usize, usize)>> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The relay knows the end of the process, and of its output only this part, until its agent is back.
    pub(crate) fn lose_agent(&self, name: &str, known: Option<usize>) {
        self.change(name, 1, |output| {
            (output.unsealed_after, output.is_over) = (known, true)
        });
    }

    /// A program writes to its standard output.
    pub(crate) fn say(&self, name: &str, text: &str) {
        self.change(name, 1, |output| output.streams[0].extend_from_slice(text.as_bytes()));
    }

    /// The bytes that arrive, and those that are lost, as zeros.
    pub(crate) fn expected(&self, name: &str, attempt: u32, stream: usize) -> Vec<u8> {
        let output = self.get(name, attempt);
        let mut bytes = output.streams[stream].clone();
        if output.has_gap && stream == 0 {
            bytes[LOST.0..LOST.1].fill(0);
        }
        bytes
    }
}

/// A stream that is open.
struct Opened(Outputs, String);

impl Opened {
    fn new(outputs: &Outputs, name: &str) -> Self {
        let mut streams = outputs.streams();
        let (open, opened) = streams.entry(name.to_owned()).or_default();
        (*open, *opened) = (*open + 1, *opened + 1);
        Self(outputs.clone(), name.to_owned())
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        if let Some((open, _)) = self.0.streams().get_mut(&self.1) {
            *open -= 1;
        }
    }
}

impl OutputReader for Outputs {
    fn read(&self, request: Request, pieces: Sender<Piece>) -> BoxFuture<'static, Result<(), ReadError>> {
        let outputs = self.clone();
        let opened = Opened::new(&outputs, &request.name);
        Box::pin(async move {
            let _opened = opened;
            let mut offsets = [request.stdout, request.stderr].map(|offset| usize::try_from(offset).unwrap());
            let mut size = 7_usize;
            sleep(outputs.delay).await;
            loop {
                if outputs.is_failing.load(Ordering::SeqCst) {
                    return Err(ReadError::Forbidden("you may not read output".to_owned()));
                }
                let output = outputs.get(&request.name, request.attempt);
                if let Some(pause) = output.chatter {
                    if chat(&pieces, &mut offsets[0], output.loses_first, pause).await.is_err() {
                        return Ok(());
                    }
                    continue;
                }
                if let Some(known) = output.unsealed_after {
                    let known = output.streams[0][offsets[0].min(known)..known].to_vec();
                    let (from, to) = (offsets[0] as u64, (offsets[0] + known.len()) as u64);
                    let _ = pieces.send(Piece::Data(OutputStream::Stdout, from, known.into())).await;
                    let _ = pieces.send(Piece::Lost(OutputStream::Stdout, endless(to))).await;
                    return Ok(());
                }
                let mut is_all = true;
                for (index, stream) in [OutputStream::Stdout, OutputStream::Stderr].into_iter().enumerate() {
                    let (at, bytes) = (offsets[index], &output.streams[index]);
                    let has_gap = output.has_gap && index == 0;
                    let piece = if has_gap && at == LOST.0 && bytes.len() >= LOST.1 {
                        offsets[index] = LOST.1;
                        Piece::Lost(stream, gap())
                    } else {
                        // Not the same pieces the next time.
                        size = (size * 31 + at) % 65_536 + 1;
                        let end = (at + size).min(bytes.len());
                        let end = if has_gap && at <= LOST.0 { end.min(LOST.0) } else { end };
                        if end == at {
                            continue;
                        }
                        offsets[index] = end;
                        Piece::Data(stream, at as u64, bytes[at..end].to_vec().into())
                    };
                    is_all = false;
                    if pieces.send(piece).await.is_err() {
                        return Ok(());
                    }
                }
                if is_all && output.is_over {
                    return Ok(());
                }
                if is_all {
                    sleep(Duration::from_millis(5)).await;
                }
            }
        })
    }

    fn problem(&self) -> Option<String> {
        None
    }
}

/// One line of a program that never stops writing, the first of which is lost. Fails if nobody receives it.
async fn chat(
    pieces: &Sender<Piece>,
    offset: &mut usize,
    loses_first: bool,
    pause: Duration,
) -> Result<(), SendError<Piece>> {
    let (from, to) = (*offset as u64, *offset as u64 + 10);
    let piece = if loses_first && from == 0 {
        let lost = Gap {
            from,
            to: Some(to),
            ..gap()
        };
        Piece::Lost(OutputStream::Stdout, lost)
    } else {
        Piece::Data(OutputStream::Stdout, from, "chatter!!\n".into())
    };
    *offset += 10;
    pieces.send(piece).await?;
    if !pause.is_zero() {
        sleep(pause).await;
    }
    Ok(())
}

fn gap() -> Gap {
    Gap {
        stream: 1,
        from: LOST.0 as u64,
        to: Some(LOST.1 as u64),
        reason: GapReason::SpoolFull.into(),
    }
}

fn endless(from: u64) -> Gap {
    Gap {
        stream: 1,
        from,
        to: None,
        reason: GapReason::NeverSealed.into(),
    }
}

/// What a program writes: text with lines of all lengths, and bytes that are no text.
fn bytes(seed: usize, length: usize) -> Vec<u8> {
    let mut state = seed as u64 + 1;
    (0..length)
        .map(|at| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            match (state >> 33) % 97 {
                0 => b'\n',
                1 if seed.is_multiple_of(5) && at % 7000 < 100 => 0xff,
                other => b'a' + (other % 26) as u8,
            }
        })
        .collect()
}

/// A process that runs, and continues.
pub(crate) fn begin_process(cluster: &Cluster, number: usize) -> String {
    let name = create_process(cluster, number);
    let record = json!({"number": 1, "grantedAt": now(), "startedAt": now()});
    set(
        cluster,
        &name,
        &json!({"phase": "Running", "attempt": 1, "attempts": [record]}),
    );
    name
}

/// Its program is paused.
pub(crate) fn pause_process(cluster: &Cluster, name: &str) {
    cluster.edit(PROCESSES, name, |process| {
        process["status"]["attempts"][0]["pausedAt"] = now();
    });
}

/// A process that ended long ago, of which the relay knows a part of the output; then all of it.
pub(crate) fn lose_node(cluster: &Cluster, outputs: &Outputs, number: usize, is_back: bool) -> String {
    let name = format!("p{number}");
    let ended = "2026-01-01T00:00:00Z";
    let mut record = json!({"number": 1, "grantedAt": ended, "startedAt": ended, "finishedAt": ended});
    let mut status = json!({"phase": "Failed", "reason": "NodeLost", "attempt": 1, "finishedAt": ended});
    if is_back {
        record["output"] = json!({"stdout": {"bytes": 10}, "stderr": {"bytes": 0}, "sealed": true});
        status["conditions"] = sealed();
    } else {
        create_process(cluster, number);
        outputs.say(&name, "one\ntwo\nfi");
    }
    outputs.lose_agent(&name, (!is_back).then_some(8));
    status["attempts"] = json!([record]);
    set(cluster, &name, &status);
    name
}

/// A process that ended before it began.
pub(crate) fn fail_process(cluster: &Cluster, number: usize) {
    let name = create_process(cluster, number);
    set(
        cluster,
        &name,
        &json!({"phase": "Failed", "reason": "StartFailed", "finishedAt": now()}),
    );
}

fn sealed() -> Value {
    json!([{"type": "OutputSealed", "status": "True", "reason": "Archived", "message": "", "lastTransitionTime": now()}])
}

fn create_process(cluster: &Cluster, number: usize) -> String {
    let name = format!("p{number}");
    cluster.put(
        PROCESSES,
        json!({
            "apiVersion": "remoteprocess.dev/v1alpha1", "kind": "RemoteProcess",
            "metadata": {"name": name, "uid": format!("u{number}"), "creationTimestamp": "2026-01-01T00:00:00Z",
                         "labels": {"app": "job"}},
            "spec": {"image": "i", "command": ["x"]},
        }),
    );
    name
}

/// One process from its creation to its end.
pub(crate) async fn run_process(cluster: Cluster, outputs: Outputs, number: usize, pause: Duration) {
    let name = create_process(&cluster, number);
    let attempts: u32 = if number % 4 == 3 { 2 } else { 1 };
    let mut records: Vec<Value> = Vec::new();
    for attempt in 1..=attempts {
        records.push(json!({"number": attempt}));
        set(
            &cluster,
            &name,
            &json!({"phase": "Pending", "attempt": attempt, "attempts": records}),
        );
        sleep(pause).await;
        let record = records.last_mut().unwrap();
        record["grantedAt"] = now();
        record["startedAt"] = now();
        set(
            &cluster,
            &name,
            &json!({"phase": "Running", "attempt": attempt, "attempts": records}),
        );
        write(&outputs, &name, attempt, number, pause).await;
        let output = outputs.get(&name, attempt);
        let stream = |index: usize| {
            let bytes = &output.streams[index];
            json!({"bytes": bytes.len(), "sha256": hex::encode(Sha256::digest(bytes))})
        };
        let record = records.last_mut().unwrap();
        record["finishedAt"] = now();
        record["exit"] = json!({"code": u32::from(attempt < attempts), "source": "Entrypoint"});
        record["output"] = json!({"stdout": stream(0), "stderr": stream(1), "sealed": true});
    }
    let mut status = json!({
        "phase": "Succeeded", "reason": "Completed", "attempt": attempts, "exitCode": 0, "finishedAt": now(),
        "attempts": records,
    });
    set(&cluster, &name, &status);
    sleep(pause).await;
    status["conditions"] = sealed();
    set(&cluster, &name, &status);
}

async fn write(outputs: &Outputs, name: &str, attempt: u32, number: usize, pause: Duration) {
    let length = number * 7919 % 90_000;
    outputs.change(name, attempt, |output| {
        output.has_gap = number % 6 == 5 && length > LOST.1
    });
    for part in 0..4_usize {
        let bytes = bytes(number + part, length / 4 + 1);
        outputs.change(name, attempt, |output| {
            output.streams[0].extend_from_slice(&bytes);
            output.streams[1].extend_from_slice(&bytes[..bytes.len() / 3]);
        });
        sleep(pause / 4).await;
    }
    outputs.change(name, attempt, |output| output.is_over = true);
}

fn set(cluster: &Cluster, name: &str, status: &Value) {
    cluster.edit(PROCESSES, name, |process| process["status"] = status.clone());
}

fn now() -> Value {
    json!(jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string())
}

/// A sink with this destination and more.
pub(crate) fn sink(destination: &Value, more: &Value) -> Value {
    let mut sink = json!({
        "apiVersion": "remoteprocess.dev/v1alpha1", "kind": "ProcessSink",
        "metadata": {"name": "events", "generation": 1},
        "spec": {"serviceAccountName": "events", "destination": destination},
    });
    let spec = sink["spec"].as_object_mut().unwrap();
    spec.extend(more.as_object().unwrap().clone());
    sink
}

/// The sink `events`.
fn config(secrets: &Path) -> Config {
    Config {
        namespace: NAMESPACE.to_owned(),
        sink: "events".to_owned(),
        secrets: Secrets::under(secrets),
    }
}

/// Starts the engine of the sink `events`.
pub(crate) fn start(cluster: &Cluster, outputs: &Outputs, secrets: &Path) -> Bridge {
    let config = config(secrets);
    let reader = Arc::new(outputs.clone());
    Bridge::spawn(free_address(), |ready, shutdown| {
        sink::run(cluster.client(), config, reader, Metrics::default(), ready, shutdown)
    })
}

/// Starts one that works while it holds the Lease.
pub(crate) fn start_candidate(cluster: &Cluster, outputs: &Outputs, secrets: &Path, line: &Line) -> Bridge {
    let config = config(secrets);
    let (client, outputs) = (cluster.client_of(line), outputs.clone());
    Bridge::spawn_candidate::<ProcessSink, _>(free_address(), ("events", line), client.clone(), move |ready, term| {
        let (config, reader) = (config.clone(), Arc::new(outputs.clone()));
        sink::run(client.clone(), config, reader, Metrics::default(), ready, term)
    })
}

/// The status of the sink.
pub(crate) fn status(cluster: &Cluster) -> Value {
    cluster
        .state_of(SINKS, "events")
        .map_or(Value::Null, |sink| sink["status"].clone())
}

/// A condition of the sink as `STATUS REASON: MESSAGE`.
pub(crate) fn condition(cluster: &Cluster, kind: &str) -> String {
    let status = status(cluster);
    let conditions = status["conditions"].as_array().cloned().unwrap_or_default();
    let found = conditions.iter().find(|condition| condition["type"] == kind);
    found.map_or_else(String::new, |condition| {
        let text = |field: &str| condition[field].as_str().unwrap_or_default();
        format!("{} {}: {}", text("status"), text("reason"), text("message"))
    })
}

/// Waits until this is so; fails after a minute.
pub(crate) async fn until(cluster: &Cluster, what: &str, is_so: impl Fn() -> bool) {
    for _ in 0..1200 {
        if is_so() {
            return;
        }
        sleep(Duration::from_millis(50)).await;
    }
    panic!("not in time: {what}; status: {:#}", status(cluster));
}

/// Whether the events of all processes are sent, and that is noted.
pub(crate) fn is_all_sent(cluster: &Cluster, number: usize) -> bool {
    let processes = cluster.all(PROCESSES);
    let is_sent = |process: &Value| {
        let cursor = process["metadata"]["annotations"]["sink.remoteprocess.dev/events"].as_str();
        cursor.is_some_and(|cursor| cursor.contains(&format!("\"m\":[{},1]", u32::MAX)))
    };
    processes.len() == number && processes.iter().all(is_sent)
}
