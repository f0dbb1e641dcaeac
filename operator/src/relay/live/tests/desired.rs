//! The desired state in the object takes effect, whichever replica is the home.

use std::sync::atomic::Ordering;

use super::*;

/// A running program, and its home.
async fn running(program: &Arc<Program>) -> (FakeAgent, Relay, Arc<LiveAttempt>) {
    program.written.send_replace(1);
    program.says(Phase::Running, Reason::Running);
    let agent = FakeAgent::serve(program).await;
    let relay = Relay::new(&memory());
    let live = relay.open(&agent);
    (agent, relay, live)
}

fn spec(generation: i64, is_paused: bool, run_deadline: Option<Duration>) -> ProgramSpec {
    ProgramSpec {
        generation,
        is_paused,
        requested_by: "kubectl-patch through spec.desiredState".to_owned(),
        run_deadline,
        status: ProgramStatus {
            is_started: true,
            ..ProgramStatus::default()
        },
    }
}

fn want(live: &LiveAttempt, program: ProgramSpec) {
    live.update_desired(Desired {
        program: Some(program),
        ..Desired::default()
    });
}

/// The first fact that matches.
async fn learned(relay: &Relay, fits: impl Fn(&Fact) -> bool) -> Fact {
    let mut learned = relay.notes.learned.subscribe();
    let learned = soon(learned.wait_for(|learned| learned.iter().any(&fits)))
        .await
        .unwrap();
    learned.iter().find(|fact| fits(fact)).cloned().unwrap()
}

fn requests(program: &Program) -> Vec<(String, bool)> {
    let pauses = program.pauses.lock().unwrap();
    pauses
        .iter()
        .map(|pause| (pause.request_id.clone(), pause.paused))
        .collect()
}

#[tokio::test]
async fn it_is_paused_and_resumed_also_by_another_home() {
    let program = Program::new(&chunks(1));
    let (agent, relay, live) = running(&program).await;
    want(&live, spec(2, true, None));
    learned(&relay, |fact| matches!(fact, Fact::Paused(Some(_)))).await;
    // The former home is gone; the next one learns only from object and agent that the program should be resumed.
    relay.shutdown.cancel();
    soon(relay.attempts.drained()).await;
    let next = Relay::new(&memory());
    let live = next.open(&agent);
    let mut resume = spec(3, false, None);
    resume.status.is_paused = true;
    want(&live, resume);
    learned(&next, |fact| *fact == Fact::Paused(None)).await;
    assert_eq!(
        requests(&program),
        [("pause/2".to_owned(), true), ("resume/3".to_owned(), false)]
    );
    let pauses = next
        .notes
        .learned
        .borrow()
        .iter()
        .filter(|fact| matches!(fact, Fact::Paused(_)))
        .count();
    assert_eq!(pauses, 1);
}

#[tokio::test]
async fn a_failed_pause_is_reported_once_and_retried() {
    let program = Program::new(&chunks(1));
    program.refuses_pauses.store(true, Ordering::Relaxed);
    let (_agent, relay, live) = running(&program).await;
    want(&live, spec(2, true, None));
    let refused = |why: &str| Fact::PauseFailed {
        generation: 2,
        why: why.to_owned(),
    };
    assert_eq!(
        learned(&relay, |fact| matches!(fact, Fact::PauseFailed { .. })).await,
        refused("it is busy")
    );
    program.refuses_pauses.store(false, Ordering::Relaxed);
    // Another part of the object changed: the request is retried at once, with another name.
    want(&live, spec(3, true, None));
    learned(&relay, |fact| matches!(fact, Fact::Paused(Some(_)))).await;
    let failures = relay
        .notes
        .learned
        .borrow()
        .iter()
        .filter(|fact| matches!(fact, Fact::PauseFailed { .. }))
        .count();
    assert_eq!(failures, 1);
}

#[tokio::test]
async fn another_run_deadline_is_sent_once_and_recorded() {
    let program = Program::new(&chunks(1));
    let (_agent, relay, live) = running(&program).await;
    let mut unstarted = spec(1, false, Some(Duration::from_secs(60)));
    unstarted.status.is_started = false;
    want(&live, unstarted);
    let mut known = spec(1, false, Some(Duration::from_secs(60)));
    known.status.run_deadline = Some(Duration::from_secs(60));
    want(&live, known.clone());
    let mut longer = spec(2, false, Some(Duration::from_secs(90)));
    longer.status.run_deadline = Some(Duration::from_secs(60));
    want(&live, longer);
    learned(&relay, |fact| *fact == Fact::RunDeadline(Some(Duration::from_secs(90)))).await;
    let mut unlimited = spec(3, false, None);
    unlimited.status.run_deadline = Some(Duration::from_secs(90));
    want(&live, unlimited);
    learned(&relay, |fact| *fact == Fact::RunDeadline(None)).await;
    assert_eq!(
        *program.deadlines.lock().unwrap(),
        [Some(Duration::from_secs(90)), None]
    );
}

#[tokio::test]
async fn a_near_deadline_is_reported() {
    let program = Program::new(&chunks(1));
    let (_agent, relay, live) = running(&program).await;
    want(&live, spec(1, false, Some(Duration::from_secs(60))));
    program.says(Phase::Running, Reason::DeadlineNear);
    let is_near = |fact: &Fact| matches!(fact, Fact::DeadlineNear(_));
    assert_eq!(
        learned(&relay, is_near).await,
        Fact::DeadlineNear(Duration::from_secs(60))
    );
    program.says(Phase::Running, Reason::Running);
    want(&live, spec(2, false, Some(Duration::from_secs(90))));
    // The agent warns about another deadline.
    learned(&relay, |fact| *fact == Fact::RunDeadline(Some(Duration::from_secs(90)))).await;
    soon(async {
        while live.state().is_some_and(|state| state.reason() == Reason::DeadlineNear) {
            tokio::task::yield_now().await;
        }
    })
    .await;
    program.says(Phase::Running, Reason::DeadlineNear);
    assert_eq!(
        learned(&relay, |fact| *fact == Fact::DeadlineNear(Duration::from_secs(90))).await,
        Fact::DeadlineNear(Duration::from_secs(90))
    );
}
