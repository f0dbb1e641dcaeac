//! A small world around the decision: a kubelet, a relay, a user and a controller that
//! forgets, in any order. What must never happen is checked after every step.

use proptest::prelude::*;

use remoteprocess_api::StopStatus;

use super::super::*;
use super::pod_name_of;

#[derive(Clone, Debug)]
enum Step {
    Reconcile,
    Seconds(u8),
    Forget,
    Schedule,
    Refuse,
    Grant,
    Start,
    Exit(AttemptExit),
    SealWithoutExit,
    EndContainer(i32),
    EndPod,
    DeletePod,
    RemovePod,
    Stop,
}

fn step() -> impl Strategy<Value = Step> {
    let exit = (0..3_i32, any::<bool>(), any::<bool>()).prop_map(|(code, killed, stopped)| AttemptExit {
        code: (!killed).then_some(code),
        signal: killed.then(|| "SIGKILL".to_owned()),
        source: ExitSource::Entrypoint,
        stop: stopped.then(StopStatus::default),
        ..AttemptExit::default()
    });
    prop_oneof![
        6 => Just(Step::Reconcile),
        3 => (0..20_u8).prop_map(Step::Seconds),
        1 => Just(Step::Forget),
        2 => Just(Step::Schedule),
        1 => Just(Step::Refuse),
        3 => Just(Step::Grant),
        2 => Just(Step::Start),
        1 => exit.prop_map(Step::Exit),
        1 => Just(Step::SealWithoutExit),
        1 => prop_oneof![Just(0), Just(3), Just(137)].prop_map(Step::EndContainer),
        1 => Just(Step::EndPod),
        1 => Just(Step::DeletePod),
        1 => Just(Step::RemovePod),
        1 => Just(Step::Stop),
    ]
}

#[derive(Debug)]
struct World {
    process: RemoteProcess,
    pod: Option<Pod>,
    memory: Memory,
    now: Timestamp,
    launches: u32,
    forgot: bool,
    created: Vec<u32>,
    last_words: Option<RemoteProcessStatus>,
}

impl World {
    fn new() -> Self {
        let mut process = super::process("", "");
        process.status = None;
        let now = "2026-01-01T00:00:00Z".parse().unwrap();
        Self {
            process,
            pod: None,
            memory: Memory::default(),
            now,
            launches: 0,
            forgot: false,
            created: vec![],
            last_words: None,
        }
    }

    fn reconcile(&mut self, refused: bool) {
        let pod = self.pod.take();
        let number = self
            .process
            .status
            .as_ref()
            .and_then(|status| status.attempt)
            .unwrap_or(1);
        let of_current = |pod: &&Pod| pod.metadata.name == Some(pod_name_of(number));
        let sight = pod.as_ref().filter(of_current).map_or(Sight::Missing, Sight::Ours);
        let verdict = decide(&Situation {
            process: &self.process,
            pod: sight,
            memory: &self.memory,
            now: self.now,
        });
        self.pod = pod;
        self.memory = verdict.memory.clone();
        self.write(verdict.status);
        match verdict.action {
            Action::None => {}
            Action::CreatePod(attempt) if refused => {
                let refusal = Refusal {
                    reason: Reason::Quota,
                    message: "full".into(),
                    is_final: false,
                };
                let situation = Situation {
                    process: &self.process,
                    pod: Sight::Missing,
                    memory: &self.memory,
                    now: self.now,
                };
                assert_eq!(self.process.status.as_ref().unwrap().attempt, Some(attempt));
                let verdict = decide_refused(&situation, &refusal, Duration::from_secs(1));
                self.write(verdict.status);
            }
            Action::CreatePod(attempt) => self.create(attempt),
            Action::DeletePod { uid, .. } => {
                let granted = self.granted();
                let pod = self.pod.as_mut().expect("only what is there is deleted");
                assert_eq!(pod.metadata.uid.as_ref(), Some(&uid));
                assert_eq!(
                    self.launches,
                    u32::from(granted),
                    "deleted before anything ran, or while stopping"
                );
                pod.metadata.deletion_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(self.now));
            }
        }
    }

    fn create(&mut self, attempt: u32) {
        let status = self.process.status.as_ref().unwrap();
        let record = status
            .attempt(attempt)
            .expect("the attempt is named before its pod is created");
        assert_eq!(status.attempt, Some(attempt));
        assert!(
            record.granted_at.is_none() && record.exit.is_none(),
            "a granted attempt was run again"
        );
        assert!(!status.phase.unwrap().is_final());
        assert!(
            self.pod
                .as_ref()
                .is_none_or(|pod| pod.metadata.name != Some(pod_name_of(attempt)))
        );
        if !self.forgot {
            assert!(!self.created.contains(&attempt), "a second pod for one attempt");
        }
        let uid = format!("p{}", self.created.len());
        self.created.push(attempt);
        self.memory.created = Some((attempt, uid.clone()));
        self.pod = serde_saphyr::from_str(&format!(
            "metadata: {{name: {}, uid: {uid}}}\nspec: {{containers: []}}\nstatus: {{phase: Pending}}\n",
            pod_name_of(attempt)
        ))
        .unwrap();
    }

    /// A server-side apply of the controller: its fields, and the relay's as they are.
    fn write(&mut self, next: RemoteProcessStatus) {
        let old = self.process.status.take().unwrap_or_default();
        let mut merged = next.clone();
        merged.output = old.output.clone();
        for record in &mut merged.attempts {
            let Some(old) = old.attempt(record.number) else {
                continue;
            };
            let own = record.clone();
            *record = AttemptStatus {
                pod_name: own.pod_name,
                pod_uid: own.pod_uid.or_else(|| old.pod_uid.clone()),
                node: own.node,
                exit: own.exit.or_else(|| old.exit.clone()),
                finished_at: own.finished_at.or(old.finished_at),
                ..old.clone()
            };
            if let (Some(was), Some(is)) = (old.finished_at, record.finished_at) {
                assert_eq!(was, is, "a field of the relay would be overwritten");
            }
        }
        if let Some(last) = &self.last_words {
            assert_eq!(*last, own_fields(&merged), "final fields changed");
        }
        if merged.phase.is_some_and(Phase::is_final) {
            let exit = merged
                .attempt
                .and_then(|n| merged.attempt(n))
                .and_then(|record| record.exit.clone());
            let earned = exit.is_some_and(|exit| {
                exit.source == ExitSource::Entrypoint && exit.code == Some(0) && exit.stop.is_none()
            });
            assert_eq!(merged.phase == Some(Phase::Succeeded), earned);
            self.last_words = Some(own_fields(&merged));
        }
        self.process.status = Some(merged);
    }

    fn granted(&self) -> bool {
        current(&self.process).is_some_and(|record| record.granted_at.is_some())
    }

    /// The relay's rule: only the current attempt of a process that shall run, and only once.
    fn grant(&mut self) {
        let Some(pod) = self
            .pod
            .as_ref()
            .filter(|pod| pod.metadata.deletion_timestamp.is_none())
        else {
            return;
        };
        if !is_running(pod) {
            return;
        }
        let uid = pod.uid();
        let stopped = should_stop(&self.process);
        let now = self.now;
        let Some(status) = self.process.status.as_mut() else {
            return;
        };
        let (Some(number), false) = (status.attempt, status.phase.is_some_and(Phase::is_final) || stopped) else {
            return;
        };
        let Some(record) = status.attempts.iter_mut().find(|record| record.number == number) else {
            return;
        };
        let of_this_pod = record.pod_uid.is_none() || record.pod_uid == uid;
        if record.exit.is_none() && record.granted_at.is_none() && of_this_pod {
            record.granted_at = Some(now);
            record.pod_uid = uid;
            self.launches += 1;
        }
    }

    fn with_granted(&mut self, act: impl FnOnce(&mut AttemptStatus, Timestamp)) {
        let now = self.now;
        let Some(status) = self.process.status.as_mut() else {
            return;
        };
        let Some(number) = status.attempt else { return };
        let record = status.attempts.iter_mut().find(|record| record.number == number);
        if let Some(record) = record.filter(|record| record.granted_at.is_some() && record.exit.is_none()) {
            act(record, now);
        }
    }

    fn set_status(&mut self, status: &str) {
        if let Some(pod) = &mut self.pod {
            pod.spec.as_mut().unwrap().node_name = Some("n".into());
            pod.status = Some(serde_saphyr::from_str(status).unwrap());
        }
    }

    fn take(&mut self, step: Step) {
        match step {
            Step::Reconcile => self.reconcile(false),
            Step::Refuse => self.reconcile(true),
            Step::Seconds(seconds) => self.now += SignedDuration::from_secs(seconds.into()),
            Step::Forget => {
                self.memory = Memory::default();
                self.forgot = true;
            }
            Step::Schedule => self.set_status(
                "{phase: Running, containerStatuses: [{name: main, image: x, imageID: '', ready: true, restartCount: 0, state: {running: {}}}]}",
            ),
            Step::Grant => self.grant(),
            Step::Start => self.with_granted(|record, now| {
                record.started_at.get_or_insert(now);
            }),
            Step::Exit(exit) => self.with_granted(|record, now| {
                record.finished_at.get_or_insert(now);
                record.exit = Some(exit);
            }),
            Step::SealWithoutExit => self.with_granted(|record, now| {
                record.finished_at.get_or_insert(now);
                record.output.get_or_insert_default();
            }),
            Step::EndContainer(code) => self.set_status(&format!(
                "{{phase: Running, containerStatuses: [{{name: main, image: x, imageID: '', ready: false, restartCount: 0, state: {{terminated: {{exitCode: {code}}}}}}}]}}"
            )),
            Step::EndPod => self.set_status("{phase: Failed, reason: Evicted, message: disk}"),
            Step::DeletePod => {
                if let Some(pod) = &mut self.pod {
                    pod.metadata.deletion_timestamp =
                        Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(self.now));
                }
            }
            Step::RemovePod => self.pod = None,
            Step::Stop => self.process.spec.desired_state = DesiredState::Stopped,
        }
    }
}

fn is_running(pod: &Pod) -> bool {
    waiting::container(pod, remoteprocess_api::names::CONTAINER_MAIN)
        .and_then(|main| main.state.as_ref())
        .is_some_and(|state| state.running.is_some())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn whatever_happens_the_rules_hold(steps in proptest::collection::vec(step(), 1..60)) {
        let mut world = World::new();
        for step in steps {
            world.take(step);
            prop_assert!(world.launches <= 1, "the program was started twice");
        }
        // Left alone, everything comes to rest: a second look changes nothing.
        world.now += SignedDuration::from_secs(600);
        for _ in 0..16 {
            world.reconcile(false);
            world.now += SignedDuration::from_secs(60);
        }
        let before = world.process.status.clone();
        world.reconcile(false);
        prop_assert_eq!(before, world.process.status);
    }
}
