//! What the object asks of its program, told to the agent until it is so: the end, a pause, another run deadline. And what
//! the agent says of that, told to the object.
//!
//! Each compares what is wanted with what is, over and over: a home that takes over needs to know nothing of the one before.
//! A request is named by the generation of the object that makes it, so that it is one request whichever home repeats it.

use std::time::Duration;

use jiff::Timestamp;
use remoteprocess_proto::v1::{
    ExecutorPauseRequest, ExecutorSetDeadlineRequest, ExecutorStopRequest, Exit, Phase, Reason, State,
};
use tokio::sync::watch;
use tokio::time::sleep;
use tracing::{debug, info};

use super::{LiveAttempt, Observed};
use crate::relay::error::{Code, Error};

/// Between two tries of what has to be said.
const AGAIN: Duration = Duration::from_secs(1);
/// The same where the answer was no: a process that cannot be paused now may be one later.
const REFUSED: Duration = Duration::from_secs(10);

/// What the object says of a live attempt.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Desired {
    /// Who wants the program to stop, and why. The first order stays: it is what ended the program.
    pub stop: Option<StopOrder>,
    /// What is wanted of a program that runs; `None` until the object has told it.
    pub program: Option<ProgramSpec>,
    /// How the attempt ended, where no agent has reported it. The first report stays.
    pub end: Option<Exit>,
    /// The status holds the end and the output. A home that has not written that itself is one whose agent found another
    /// home, which may never tell it: it gives way once the archive holds the end, too.
    pub is_recorded: bool,
}

impl Desired {
    /// Takes what the object says now; true where that is something new.
    pub(super) fn update(&mut self, said: Self) -> bool {
        let before = self.clone();
        self.stop = self.stop.take().or(said.stop);
        self.program = said.program.or(self.program.take());
        self.end = self.end.take().or(said.end);
        self.is_recorded |= said.is_recorded;
        *self != before
    }
}

/// What the object wants of a program that runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProgramSpec {
    /// Of the object.
    pub generation: i64,
    /// Nothing of it is to run.
    pub is_paused: bool,
    /// How long it may run, in seconds.
    pub run_seconds: Option<u32>,
    /// What the object's status says of it already.
    pub status: ProgramStatus,
}

/// What the status says of a program that runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProgramStatus {
    /// It was launched.
    pub is_started: bool,
    /// Nothing of it runs.
    pub is_paused: bool,
    /// How long it may run, in seconds.
    pub run_seconds: Option<u32>,
}

/// Who asks for the end, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StopOrder {
    /// The user or field manager and its way, or the part of the system that asks.
    pub requested_by: String,
    /// A sentence, or nothing.
    pub message: String,
}

/// What is learned of a program that runs.
#[derive(Clone, Debug, PartialEq)]
pub enum Fact {
    /// It was launched.
    Started {
        /// When, in nanoseconds since the Unix epoch.
        at_unix_nanos: i64,
        /// How long it may run, in seconds.
        run_seconds: Option<u32>,
    },
    /// Since when nothing of it runs; `None`: it goes on.
    Paused(Option<Timestamp>),
    /// How long it may run now, in seconds.
    RunSeconds(Option<u32>),
    /// It will soon have run for so many seconds, which is all that it may.
    DeadlineNear(u32),
    /// It cannot be paused, by the agent's own words.
    PauseFailed {
        /// Of the object that asks for it.
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

    /// Returns when one of both has changed since it was looked at, or after a pause.
    async fn changed(&mut self, pause: Option<Duration>) {
        tokio::select! {
            _ = self.desired.changed() => {}
            _ = self.observed.changed() => {}
            () = sleep(pause.unwrap_or_default()), if pause.is_some() => {}
        }
    }
}

/// Does all of it; never ends.
pub(super) async fn run(live: &LiveAttempt) {
    tokio::join!(
        stop(live),
        keep_paused(live),
        keep_limit(live),
        tell_pauses(live),
        tell_warnings(live)
    );
}

/// Waits for an order to stop and then tells the agent until it has heard.
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
}

async fn keep_paused(live: &LiveAttempt) {
    let mut view = View::of(live);
    let mut refused_of = None;
    loop {
        let (program, state) = view.now();
        let pause = match (program, is_paused(state.as_ref())) {
            (Some(program), Some(is)) if program.is_paused != is => {
                let answer = live.client.pause(request(&program)).await;
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

/// When to try again; not at all where it was done, which the next state says.
fn after(answer: Result<(), Error>) -> Option<Duration> {
    match answer {
        Ok(()) => None,
        Err(error) if error.is_unavailable() => Some(AGAIN),
        Err(_) => Some(REFUSED),
    }
}

/// Tells the agent of a limit that is not the one by which it goes, as the status has it.
async fn keep_limit(live: &LiveAttempt) {
    let mut view = View::of(live);
    loop {
        let (program, state) = view.now();
        let program =
            program.filter(|program| program.status.is_started && program.run_seconds != program.status.run_seconds);
        let pause = match (program, is_paused(state.as_ref())) {
            (Some(ProgramSpec { run_seconds, .. }), Some(_)) => {
                let answer = live
                    .client
                    .set_deadline(ExecutorSetDeadlineRequest { run_seconds })
                    .await;
                match &answer {
                    Ok(()) => live.learn(Fact::RunSeconds(run_seconds)).await,
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

/// Writes down that it is paused, or goes on, where the status says otherwise.
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
        let run_seconds = live
            .desired
            .borrow()
            .program
            .as_ref()
            .and_then(|program| program.run_seconds);
        if let Some(run_seconds) = run_seconds {
            live.learn(Fact::DeadlineNear(run_seconds)).await;
        }
        if observed.wait_for(|observed| !is_near(observed)).await.is_err() {
            return;
        }
    }
}

/// Of a program that runs or is paused, which of the two.
fn is_paused(state: Option<&State>) -> Option<bool> {
    match state?.phase() {
        Phase::Running => Some(false),
        Phase::Paused => Some(true),
        _ => None,
    }
}

impl LiveAttempt {
    async fn learn(&self, fact: Fact) {
        self.context.record.learned(&self.subject, fact).await;
    }
}
