//! Drives the program to the desired state in the object: the end, a pause, another run deadline. And records in the
//! object what the agent reports about that.
//!
//! Each task compares desired and observed state repeatedly: a home that takes over needs no knowledge of the previous
//! one. A request is named by the generation of the object, so that it is one request whichever home repeats it.

use std::time::Duration;

use jiff::Timestamp;
use remoteprocess_proto::timing::to_wire;
use remoteprocess_proto::v1::{
    ExecutorPauseRequest, ExecutorSetDeadlineRequest, ExecutorStopRequest, Exit, Phase, Reason, State,
};
use tokio::sync::watch;
use tokio::time::sleep;
use tracing::{debug, info};

use super::{LiveAttempt, Observed};
use crate::audit::{Action, Audit};
use crate::relay::error::{Code, Error};

/// Pause between two tries of a request.
const AGAIN: Duration = Duration::from_secs(1);
/// Pause after a refusal: a process that cannot be paused now may be one later.
const REFUSED: Duration = Duration::from_secs(10);

/// The desired state of a live attempt, according to its object.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Desired {
    /// Who requests the stop, and why. The first order stays, because it ended the program.
    pub stop: Option<StopOrder>,
    /// The desired state of a running program; `None` until the object is known.
    pub program: Option<ProgramSpec>,
    /// How the attempt ended, if the agent has not reported it. The first report stays.
    pub end: Option<Exit>,
    /// The status contains the end and the output. If this home has not written them, its agent found another home and
    /// may never tell this one; so this home closes once the archive also contains the end.
    pub is_recorded: bool,
}

impl Desired {
    /// Merges the current desired state; returns true if that changes anything.
    pub(super) fn update(&mut self, said: Self) -> bool {
        let before = self.clone();
        self.stop = self.stop.take().or(said.stop);
        self.program = said.program.or(self.program.take());
        self.end = self.end.take().or(said.end);
        self.is_recorded |= said.is_recorded;
        *self != before
    }
}

/// The desired state of a running program.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProgramSpec {
    /// Generation of the object.
    pub generation: i64,
    /// No process of it should run.
    pub is_paused: bool,
    /// Who requests that, according to the object.
    pub requested_by: String,
    /// How long it may run, in seconds.
    pub run_deadline: Option<Duration>,
    /// What the object's status already says.
    pub status: ProgramStatus,
}

/// What the status says about a running program.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProgramStatus {
    /// It was launched.
    pub is_started: bool,
    /// No process of it runs.
    pub is_paused: bool,
    /// How long it may run, in seconds.
    pub run_deadline: Option<Duration>,
}

/// Who requests the end, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StopOrder {
    /// The user or field manager and the way of the request, or the component that requests it.
    pub requested_by: String,
    /// The reason, or empty.
    pub message: String,
}

/// A fact about a running program.
#[derive(Clone, Debug, PartialEq)]
pub enum Fact {
    /// It was launched.
    Started {
        /// When, in nanoseconds since the Unix epoch.
        at_unix_nanos: i64,
        /// How long it may run, in seconds.
        run_deadline: Option<Duration>,
    },
    /// Since when no process of it runs; `None`: it was resumed.
    Paused(Option<Timestamp>),
    /// How long it may run now, in seconds.
    RunDeadline(Option<Duration>),
    /// It will soon reach its run limit of this many seconds.
    DeadlineNear(Duration),
    /// It cannot be paused, according to the agent.
    PauseFailed {
        /// Generation of the object that requests it.
        generation: i64,
        /// Why.
        why: String,
    },
}

/// Desired and observed state, as both change.
struct View {
    desired: watch::Receiver<Desired>,
    observed: watch::Receiver<Observed>,
}

impl View {
    fn of(live: &LiveAttempt) -> Self {
        Self {
            desired: live.desired.subscribe(),
            observed: live.observed.subscribe(),
        }
    }

    fn now(&mut self) -> (Option<ProgramSpec>, Option<State>) {
        (
            self.desired.borrow_and_update().program.clone(),
            self.observed.borrow_and_update().state.clone(),
        )
    }

    /// Returns when one of the two has changed since the last look, or after a pause.
    async fn changed(&mut self, pause: Option<Duration>) {
        tokio::select! {
            _ = self.desired.changed() => {}
            _ = self.observed.changed() => {}
            () = sleep(pause.unwrap_or_default()), if pause.is_some() => {}
        }
    }
}

/// Runs all of these tasks; never returns.
pub(super) async fn run(live: &LiveAttempt) {
    tokio::join!(
        stop(live),
        keep_paused(live),
        keep_limit(live),
        tell_pauses(live),
        tell_warnings(live)
    );
}

/// Waits for an order to stop and then sends it to the agent until that has received it.
async fn stop(live: &LiveAttempt) {
    let mut desired = live.desired.subscribe();
    let ordered = desired.wait_for(|desired| desired.stop.is_some()).await;
    let Ok(Some(order)) = ordered.map(|desired| desired.stop.clone()) else {
        return;
    };
    let request = ExecutorStopRequest {
        requested_by: order.requested_by.clone(),
        message: order.message,
        ..ExecutorStopRequest::default()
    };
    while let Err(error) = live.client.stop(request.clone()).await {
        debug!(uid = live.subject.key.uid, %error, "the agent has not heard the stop yet");
        sleep(AGAIN).await;
    }
    audit(live, &order.requested_by, Action::Stop);
}

/// Records what is done because the object says so.
fn audit(live: &LiveAttempt, requested_by: &str, action: Action<'_>) {
    let subject = &live.subject;
    let audit = Audit {
        requested_by,
        namespace: &subject.namespace,
        name: &subject.name,
        uid: &subject.key.uid,
        attempt: subject.key.attempt,
        ..Audit::default()
    };
    audit.write(action);
}

async fn keep_paused(live: &LiveAttempt) {
    let mut view = View::of(live);
    let mut refused_of = None;
    let mut audited = None;
    loop {
        let (program, state) = view.now();
        let pause = match (program, is_paused(state.as_ref())) {
            (Some(program), Some(is)) if program.is_paused != is => {
                let request = request(&program);
                let answer = live.client.pause(request.clone()).await;
                // A state that comes late can make this send the same request again.
                if answer.is_ok() && audited.as_ref() != Some(&request.request_id) {
                    audited = Some(request.request_id);
                    let action = if program.is_paused {
                        Action::Pause
                    } else {
                        Action::Resume
                    };
                    audit(live, &program.requested_by, action);
                }
                if let (Err(error), true) = (&answer, program.is_paused)
                    && !error.is_unavailable()
                    && refused_of.replace(program.generation) != Some(program.generation)
                {
                    let why = error.message.clone();
                    let generation = program.generation;
                    live.learn(Fact::PauseFailed { generation, why }).await;
                }
                after(answer)
            }
            _ => None,
        };
        view.changed(pause).await;
    }
}

fn request(program: &ProgramSpec) -> ExecutorPauseRequest {
    let verb = if program.is_paused { "pause" } else { "resume" };
    ExecutorPauseRequest {
        request_id: format!("{verb}/{}", program.generation),
        paused: program.is_paused,
    }
}

/// When to retry; `None` if it succeeded, which the next state confirms.
fn after(answer: Result<(), Error>) -> Option<Duration> {
    match answer {
        Ok(()) => None,
        Err(error) if error.is_unavailable() => Some(AGAIN),
        Err(_) => Some(REFUSED),
    }
}

/// Sends the agent the limit of the object if the agent's own, as the status shows it, differs.
async fn keep_limit(live: &LiveAttempt) {
    let mut view = View::of(live);
    loop {
        let (program, state) = view.now();
        let program =
            program.filter(|program| program.status.is_started && program.run_deadline != program.status.run_deadline);
        let pause = match (program, is_paused(state.as_ref())) {
            (Some(ProgramSpec { run_deadline, .. }), Some(_)) => {
                let answer = live
                    .client
                    .set_deadline(ExecutorSetDeadlineRequest {
                        run_deadline: run_deadline.and_then(to_wire),
                    })
                    .await;
                match &answer {
                    Ok(()) => live.learn(Fact::RunDeadline(run_deadline)).await,
                    Err(error) if error.code == Code::Unimplemented => {
                        info!(
                            uid = live.subject.key.uid,
                            "the agent is too old for another run deadline"
                        );
                        return;
                    }
                    Err(_) => {}
                }
                after(answer)
            }
            _ => None,
        };
        view.changed(pause).await;
    }
}

/// Records that the program is paused or resumed, if the status says otherwise.
async fn tell_pauses(live: &LiveAttempt) {
    let mut view = View::of(live);
    loop {
        if let (Some(program), Some(state)) = view.now() {
            let is = state.phase() == Phase::Paused;
            if program.status.is_paused != is {
                live.learn(Fact::Paused(is.then(Timestamp::now))).await;
            }
        }
        view.changed(None).await;
    }
}

async fn tell_warnings(live: &LiveAttempt) {
    let mut observed = live.observed.subscribe();
    let is_near = |observed: &Observed| {
        observed
            .state
            .as_ref()
            .is_some_and(|state| state.reason() == Reason::DeadlineNear)
    };
    // The sender lives in the live attempt.
    while observed.wait_for(is_near).await.is_ok() {
        let run_deadline = live
            .desired
            .borrow()
            .program
            .as_ref()
            .and_then(|program| program.run_deadline);
        if let Some(run_deadline) = run_deadline {
            live.learn(Fact::DeadlineNear(run_deadline)).await;
        }
        if observed.wait_for(|observed| !is_near(observed)).await.is_err() {
            return;
        }
    }
}

/// Whether a program that runs or is paused is paused; `None` in other phases.
fn is_paused(state: Option<&State>) -> Option<bool> {
    match state?.phase() {
        Phase::Running => Some(false),
        Phase::Paused => Some(true),
        _ => None,
    }
}
