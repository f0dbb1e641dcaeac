//! A small world around the decision: a kubelet and its node, a relay, a user, and two controllers that both believe
//! that they lead, with caches of their own that lag behind and a memory that they lose, in any order. After every step
//! the test checks that nothing forbidden has happened.

use std::collections::BTreeMap;

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use remoteprocess_api::StopStatus;
use serde_json::{Value, json};

use super::*;
use crate::controller::{is_behind, observe};

/// How often each kind of end is retried in this world.
const LIMIT: u32 = 2;
/// Seconds until a kubelet that answers has ended a pod which the API server does not know.
const KUBELET_SECONDS: i64 = 60;

#[derive(Clone, Debug)]
enum Step {
    Reconcile(usize),
    Refuse(usize),
    Refresh(usize),
    Forget(usize),
    Seconds(u8),
    Schedule,
    Grant,
    Start,
    Exit(AttemptExit),
    SealWithoutExit,
    EndContainer(i32),
    EndPod,
    DeletePod,
    RemovePod,
    ForceRemovePod,
    NodeSilent,
    NodeBack,
    NodeGone,
    Want(DesiredState),
}

fn step() -> impl Strategy<Value = Step> {
    let exit = (
        0..3_i32,
        any::<bool>(),
        prop_oneof![4 => Just(None), 1 => Just(Some("kubelet")), 1 => Just(Some("alice"))],
    );
    let exit = exit.prop_map(|(code, killed, by)| AttemptExit {
        code: (!killed).then_some(code),
        signal: killed.then(|| "SIGKILL".to_owned()),
        source: ExitSource::Entrypoint,
        stop: by.map(|by| StopStatus {
            requested_by: by.into(),
            message: None,
        }),
        ..AttemptExit::default()
    });
    let leader = || prop_oneof![3 => Just(0_usize), 1 => Just(1_usize)];
    prop_oneof![
        12 => leader().prop_map(Step::Reconcile),
        8 => leader().prop_map(Step::Refresh),
        1 => leader().prop_map(Step::Refuse),
        1 => leader().prop_map(Step::Forget),
        4 => (0..60_u8).prop_map(Step::Seconds),
        5 => Just(Step::Schedule),
        5 => Just(Step::Grant),
        3 => Just(Step::Start),
        3 => exit.prop_map(Step::Exit),
        1 => Just(Step::SealWithoutExit),
        1 => prop_oneof![Just(0), Just(3), Just(137)].prop_map(Step::EndContainer),
        3 => Just(Step::EndPod),
        1 => Just(Step::DeletePod),
        1 => Just(Step::RemovePod),
        1 => Just(Step::ForceRemovePod),
        1 => Just(Step::NodeSilent),
        1 => Just(Step::NodeBack),
        1 => Just(Step::NodeGone),
        2 => prop_oneof![1 => Just(DesiredState::Paused), 2 => Just(DesiredState::Running)].prop_map(Step::Want),
        // Most interesting things happen to processes that are not stopped.
        1 => prop_oneof![7 => Just(Step::Seconds(1)), 1 => Just(Step::Want(DesiredState::Stopped))],
    ]
}

/// One operator that believes that it leads.
#[derive(Debug, Default)]
struct Leader {
    process: RemoteProcess,
    pods: BTreeMap<u32, Pod>,
    memory: Memory,
}

#[derive(Debug)]
struct World {
    process: RemoteProcess,
    version: u64,
    pods: BTreeMap<u32, Pod>,
    made: u32,
    node: NodeSight,
    /// Attempts whose program runs, whatever the API server knows of it, and since when it knows of no pod.
    alive: BTreeMap<u32, Option<Timestamp>>,
    launches: BTreeMap<u32, u32>,
    leaders: [Leader; 2],
    now: Timestamp,
    last_words: Option<RemoteProcessStatus>,
}

impl World {
    fn new(spec: &str) -> Self {
        let mut process = super::process("", spec);
        process.status = None;
        process.metadata.resource_version = Some("0".into());
        let now = "2026-01-01T00:00:00Z".parse().unwrap();
        process.metadata.creation_timestamp = Some(time(now));
        let leader = || Leader {
            process: process.clone(),
            ..Leader::default()
        };
        Self {
            leaders: [leader(), leader()],
            process,
            version: 0,
            pods: BTreeMap::new(),
            made: 0,
            node: NodeSight::Ready { since: now },
            alive: BTreeMap::new(),
            launches: BTreeMap::new(),
            now,
            last_words: None,
        }
    }

    fn number(&self) -> u32 {
        self.process
            .status
            .as_ref()
            .and_then(|status| status.attempt)
            .unwrap_or(1)
    }

    fn changed(&mut self) {
        self.version += 1;
        self.process.metadata.resource_version = Some(self.version.to_string());
    }

    fn refresh(&mut self, leader: usize) {
        let (process, pods) = (self.process.clone(), self.pods.clone());
        let leader = &mut self.leaders[leader];
        (leader.process, leader.pods) = (process, pods);
    }

    /// One reconcile with the leader's own caches, in the order of the real one.
    fn reconcile(&mut self, who: usize, refused: bool) {
        let Leader { process, pods, memory } = &self.leaders[who];
        let (process, memory) = (process.clone(), memory.clone());
        if is_behind(&process, &memory) {
            return;
        }
        let record = current(&process).cloned();
        let mut pod = record.as_ref().and_then(|record| pods.get(&record.number).cloned());
        let mut node = NodeSight::default();
        if let (None, Some(record)) = (&pod, &record)
            && observe::is_worth_asking(&process, record, &memory)
        {
            pod = self.pods.get(&record.number).cloned();
            if pod.is_none() && record.node.is_some() && observe::needs_node(&process, record) {
                node = self.node;
            }
        }
        let situation = Situation {
            process: &process,
            pod: pod.as_ref().map_or(Sight::Missing, Sight::Ours),
            node,
            memory: &memory,
            now: self.now,
        };
        let decision = decide(&situation);
        self.leaders[who].memory = decision.memory.clone();
        if !self.write(who, decision.status) {
            return;
        }
        match decision.action {
            Action::None => {}
            Action::CreatePod(attempt) if refused => {
                let process = self.leaders[who].process.clone();
                let memory = self.leaders[who].memory.clone();
                let refusal = Refusal {
                    reason: Reason::Quota,
                    message: "full".into(),
                    is_final: false,
                };
                let situation = Situation {
                    process: &process,
                    pod: Sight::Missing,
                    node: NodeSight::default(),
                    memory: &memory,
                    now: self.now,
                };
                assert_eq!(process.status.as_ref().unwrap().attempt, Some(attempt));
                let decision = decide_refused(&situation, &refusal, Duration::from_secs(1));
                self.write(who, decision.status);
            }
            Action::CreatePod(attempt) => self.create(who, attempt),
            Action::DeletePod { name, uid, .. } => self.delete(&name, &uid),
            Action::DeleteProcess => panic!("there is no TTL in this world"),
        }
    }

    fn create(&mut self, who: usize, attempt: u32) {
        let status = self.leaders[who].process.status.as_ref().unwrap();
        assert_eq!(
            status.attempt,
            Some(attempt),
            "the attempt is named before its pod is created"
        );
        assert!(status.attempt(attempt).unwrap().granted_at.is_none());
        assert!(!status.phase.unwrap().is_final());
        // The name is the lock: the second creator adopts the existing pod.
        let made = &mut self.made;
        let pod = self.pods.entry(attempt).or_insert_with(|| {
            *made += 1;
            let name = pod_name_of(attempt);
            let metadata = json!({"name": name, "uid": format!("p{made}")});
            pod(json!({"metadata": metadata, "spec": {"containers": []}, "status": {"phase": "Pending"}}))
        });
        self.leaders[who].memory.created = Some((attempt, pod.uid().unwrap()));
    }

    fn delete(&mut self, name: &str, uid: &str) {
        let found = self
            .pods
            .iter_mut()
            .find(|(_, pod)| pod.metadata.name.as_deref() == Some(name));
        let Some((number, pod)) = found.filter(|(_, pod)| pod.metadata.uid.as_deref() == Some(uid)) else {
            return;
        };
        let record = self.process.status.as_ref().unwrap().attempt(*number).unwrap();
        let of_this_pod = record.granted_at.is_some() && record.pod_uid.as_deref() == Some(uid);
        assert!(
            !of_this_pod || record.exit.is_some() || should_stop(&self.process),
            "the pod of a program that runs was deleted"
        );
        pod.metadata.deletion_timestamp.get_or_insert(time(self.now));
    }

    /// A write of the controller, guarded by the version that it has seen. Returns false if that version is old.
    fn write(&mut self, who: usize, next: RemoteProcessStatus) -> bool {
        let seen = &self.leaders[who].process;
        if seen.status.clone().unwrap_or_default() == next {
            return true;
        }
        if seen.metadata.resource_version != self.process.metadata.resource_version {
            return false;
        }
        for record in &next.attempts {
            let old = self.process.status.as_ref().and_then(|old| old.attempt(record.number));
            let of_relay = |record: &AttemptStatus| {
                let AttemptStatus {
                    granted_at,
                    started_at,
                    output,
                    ..
                } = record.clone();
                (granted_at, started_at, output)
            };
            if let Some(old) = old {
                assert_eq!(
                    of_relay(old),
                    of_relay(record),
                    "a field of the relay would be overwritten"
                );
                assert!(old.finished_at.is_none() || old.finished_at == record.finished_at);
                assert!(old.exit.is_none() || old.exit == record.exit);
            }
        }
        self.say(next);
        self.changed();
        self.leaders[who].process = self.process.clone();
        true
    }

    /// Sets the status. An end that it contains must stay, whichever component wrote it.
    fn say(&mut self, next: RemoteProcessStatus) {
        if let Some(last) = &self.last_words {
            assert_eq!(*last, final_words(&next), "final fields changed");
        }
        if next.phase.is_some_and(Phase::is_final) {
            let exit = next
                .attempt
                .and_then(|n| next.attempt(n))
                .and_then(|record| record.exit.clone());
            let earned = exit.is_some_and(|exit| {
                exit.source == ExitSource::Entrypoint && exit.code == Some(0) && exit.stop.is_none()
            });
            assert_eq!(next.phase == Some(Phase::Succeeded), earned);
            self.last_words = Some(final_words(&next));
        }
        self.process.status = Some(next);
    }

    /// The relay's rule, which looks at the current object: only the current attempt of a process that should run, and
    /// only once. The program starts; the test checks that it is the first time and that no other runs.
    fn grant(&mut self) {
        let number = self.number();
        let Some(pod) = self.pods.get(&number).filter(|pod| is_running(pod)) else {
            return;
        };
        let (uid, now, stopped) = (pod.uid(), self.now, should_stop(&self.process));
        let Some(status) = self.process.status.as_mut() else {
            return;
        };
        if stopped || status.phase.is_some_and(Phase::is_final) {
            return;
        }
        let Some(record) = status.attempts.iter_mut().find(|record| record.number == number) else {
            return;
        };
        let of_this_pod = record.pod_uid.is_none() || record.pod_uid == uid;
        if record.exit.is_none() && record.granted_at.is_none() && of_this_pod {
            record.granted_at = Some(now);
            record.pod_uid = uid;
            self.changed();
            assert!(
                self.alive.is_empty(),
                "attempt {number} begins while {:?} run",
                self.alive
            );
            self.alive.insert(number, None);
            *self.launches.entry(number).or_default() += 1;
        }
    }

    fn with_granted(&mut self, act: impl FnOnce(&mut AttemptStatus, Timestamp)) -> bool {
        let (number, now) = (self.number(), self.now);
        let attempts = self.process.status.iter_mut().flat_map(|status| &mut status.attempts);
        let mut granted = attempts.filter(|record| record.number == number && record.granted_at.is_some());
        let Some(record) = granted.next().filter(|record| record.exit.is_none()) else {
            return false;
        };
        act(record, now);
        let learned = self.process.status.clone().unwrap_or_default();
        let next = tell(&self.process, learned, now);
        self.say(next);
        self.changed();
        true
    }

    /// The relay writes an end only if the status has none.
    fn report(&mut self, exit: Option<AttemptExit>) {
        let number = self.number();
        let reported = self.alive.contains_key(&number)
            && self.with_granted(|record, now| {
                record.finished_at.get_or_insert(now);
                record.output.get_or_insert_default();
                record.exit = exit;
            });
        if reported {
            self.alive.remove(&number);
        }
    }

    fn set_status(&mut self, status: Value) {
        let number = self.number();
        if let Some(pod) = self.pods.get_mut(&number).filter(|pod| !pod::is_terminal(pod)) {
            pod.spec.as_mut().unwrap().node_name = Some("n".into());
            pod.status = Some(serde_json::from_value(status).unwrap());
        }
    }

    /// The kubelet reports that the containers have ended; if it cannot report, nothing happens.
    fn end(&mut self, status: Value) {
        if self.node == NodeSight::Silent || !self.pods.contains_key(&self.number()) {
            return;
        }
        self.set_status(status);
        self.alive.remove(&self.number());
    }

    fn pass_time(&mut self, seconds: u8) {
        self.now += SignedDuration::from_secs(seconds.into());
        if !matches!(self.node, NodeSight::Ready { .. }) {
            self.alive.values_mut().for_each(|since| *since = None);
            return;
        }
        let (now, pods) = (self.now, &self.pods);
        self.alive.retain(|number, since| {
            if pods.contains_key(number) {
                return true;
            }
            let since = *since.get_or_insert(now);
            now.duration_since(since) < SignedDuration::from_secs(KUBELET_SECONDS)
        });
    }

    fn take(&mut self, step: Step) {
        let number = self.number();
        match step {
            Step::Reconcile(who) => self.reconcile(who, false),
            Step::Refuse(who) => self.reconcile(who, true),
            Step::Refresh(who) => self.refresh(who),
            Step::Forget(who) => self.leaders[who].memory = Memory::default(),
            Step::Seconds(seconds) => self.pass_time(seconds),
            Step::Schedule if !self.alive.contains_key(&number) => self.set_status(main_is(json!({"running": {}}))),
            Step::Schedule => {}
            Step::Grant => self.grant(),
            Step::Start => drop(self.with_granted(|record, now| {
                record.started_at.get_or_insert(now);
            })),
            Step::Exit(exit) => self.report(Some(exit)),
            Step::SealWithoutExit => self.report(None),
            Step::EndContainer(code) => self.end(main_is(json!({"terminated": {"exitCode": code}}))),
            Step::EndPod => self.end(json!({"phase": "Failed", "reason": "Evicted", "message": "disk"})),
            Step::DeletePod => {
                let now = time(self.now);
                if let Some(pod) = self.pods.get_mut(&number) {
                    pod.metadata.deletion_timestamp.get_or_insert(now);
                }
            }
            Step::RemovePod if self.node != NodeSight::Silent => {
                self.pods.remove(&number);
                self.alive.remove(&number);
            }
            Step::RemovePod => {}
            Step::ForceRemovePod => drop(self.pods.remove(&number)),
            Step::NodeSilent => self.node = NodeSight::Silent,
            Step::NodeBack if !matches!(self.node, NodeSight::Ready { .. }) => {
                self.node = NodeSight::Ready { since: self.now };
            }
            Step::NodeBack => {}
            Step::NodeGone => {
                self.node = NodeSight::Gone;
                self.alive.clear();
            }
            Step::Want(_) if self.process.spec.desired_state == DesiredState::Stopped => {}
            Step::Want(state) => {
                self.process.spec.desired_state = state;
                self.changed();
            }
        }
    }

    fn check(&self) {
        assert!(
            self.launches.values().all(|launches| *launches == 1),
            "an attempt was started twice"
        );
        let runs = u32::try_from(self.launches.len()).unwrap();
        let allowed = if self.process.spec.retries.is_some() {
            1 + 2 * LIMIT
        } else {
            1
        };
        assert!(runs <= allowed, "{runs} runs");
    }

    /// Without further events, and with a node that answers, everything settles: another reconcile changes nothing.
    fn come_to_rest(&mut self) {
        self.take(Step::NodeBack);
        let mut quiet = 0;
        for _ in 0..60 {
            let before = self.process.status.clone();
            self.pass_time(120);
            self.refresh(0);
            self.reconcile(0, false);
            self.check();
            quiet = if before == self.process.status { quiet + 1 } else { 0 };
            // No wait in this world is longer than six minutes.
            if quiet == 4 {
                return;
            }
        }
        panic!("it never comes to rest: {:?}", self.process.status);
    }
}

/// The part of an end that never changes. The output may follow.
fn final_words(status: &RemoteProcessStatus) -> RemoteProcessStatus {
    let mut words = status.clone();
    words.output = None;
    words.attempts.iter_mut().for_each(|record| record.output = None);
    words
}

fn pod(object: Value) -> Pod {
    serde_json::from_value(object).unwrap()
}

fn main_is(state: Value) -> Value {
    let main = json!({"name": "main", "image": "x", "imageID": "", "ready": true, "restartCount": 0, "state": state});
    json!({"phase": "Running", "containerStatuses": [main]})
}

fn time(at: Timestamp) -> k8s_openapi::apimachinery::pkg::apis::meta::v1::Time {
    k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(at)
}

fn is_running(pod: &Pod) -> bool {
    pod::container(pod, remoteprocess_api::names::CONTAINER_MAIN)
        .and_then(|main| main.state.as_ref())
        .is_some_and(|state| state.running.is_some())
}

const RETRIES: &str = ", retries: {limit: 2, backoff: {initialSeconds: 1}}";
const DEADLINE: &str = ", retries: {limit: 2}, deadlines: {startSeconds: 60}";

fn live(spec: &str, steps: Vec<Step>) -> usize {
    let mut world = World::new(spec);
    for step in steps {
        world.take(step);
        world.check();
    }
    world.come_to_rest();
    world.launches.len()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn one_run_whatever_happens(steps in proptest::collection::vec(step(), 1..80)) {
        live("", steps);
    }

    #[test]
    fn never_two_runs_at_once_whatever_happens(steps in proptest::collection::vec(step(), 1..200)) {
        live(RETRIES, steps);
    }

    #[test]
    fn a_start_deadline_changes_nothing_of_that(steps in proptest::collection::vec(step(), 1..120)) {
        live(DEADLINE, steps);
    }
}

/// Worlds from a fixed seed, until 500 attempts have been started in them, or 2,000 with `RPROC_LONG=1`.
#[test]
fn many_attempts_with_faults() {
    let is_long = std::env::var("RPROC_LONG").is_ok_and(|long| long == "1");
    let wanted = if is_long { 2000 } else { 500 };
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let worlds = proptest::collection::vec(step(), 150..300);
    let (mut attempts, mut repeated) = (0, 0);
    while attempts < wanted {
        let steps = worlds.new_tree(&mut runner).unwrap().current();
        let started = live(RETRIES, steps);
        attempts += started;
        repeated += usize::from(started > 1);
    }
    assert!(
        repeated > wanted / 10,
        "only {repeated} worlds came to a second attempt"
    );
}
