use remoteprocess_entrypoint::message::{Launch as LaunchOrder, Leftovers, StopCause, Usage};

use crate::process::Echo;
use crate::process::facts::Warned;
use crate::process::settings::Warning;
use crate::spool::WhenFull;

use super::*;

const SECRET: Secret = Secret([1; 32]);
const OTHER: Secret = Secret([2; 32]);

const SETTINGS: LaunchSettings = LaunchSettings {
    order: LaunchOrder {
        merge: false,
        stop_signal: 15,
        stop_grace_millis: 30_000,
        agent_lost_millis: 600_000,
        leftovers: Leftovers::Kill,
        run_deadline: Some(Duration::from_secs(60)),
        pause_stops_clock: true,
        stdin: false,
        stdin_from_file: false,
        terminal: None,
    },
    warning: Some(Warning {
        signal: Some(10),
        before: Duration::from_secs(10),
    }),
    when_full: WhenFull::Block,
    echo: Echo::None,
};

/// When the program of these tests starts.
const START: Moment = Duration::from_secs(1000);

fn after(seconds: u64) -> Moment {
    START + Duration::from_secs(seconds)
}

fn fresh() -> Machine {
    let (machine, first) = Machine::new(Facts::default());
    assert!(first.is_empty());
    machine
}

/// The machine of an agent that was started after `machine`'s was killed.
fn reborn(machine: &Machine) -> (Machine, Vec<Action>) {
    Machine::new(machine.facts().clone())
}

fn hello() -> Event {
    Event::Hello {
        resume: None,
        has_pipes: false,
        fresh_secret: SECRET,
    }
}

fn resume(secret: Secret, launched: bool) -> Event {
    Event::Hello {
        resume: Some(Resume { secret, launched }),
        has_pipes: launched,
        fresh_secret: OTHER,
    }
}

fn launched() -> Event {
    Event::Launched {
        pid: 7,
        at_unix_nanos: 1,
        has_pipes: true,
        is_paused: false,
        now: START,
    }
}

fn exited(outcome: Outcome) -> Exited {
    Exited {
        outcome,
        at_unix_nanos: 2,
        usage: Usage::default(),
        leftovers: 0,
        oom_kills: 0,
        is_oom: false,
        stop: None,
    }
}

fn stop(by: &str) -> Event {
    Event::Stop(Stop {
        requested_by: by.into(),
        message: String::new(),
        signal: 15,
        grace_millis: 5,
        cause: StopCause::Requested,
    })
}

fn running() -> Machine {
    let mut machine = fresh();
    machine.on(hello());
    machine.on(Event::Granted(SETTINGS));
    machine.on(launched());
    machine
}

fn orders(actions: &[Action]) -> Vec<&'static str> {
    let name = |action: &Action| match action {
        Action::Apply(_) => "apply",
        Action::Persist(Fact::Welcomed(_)) => "persist secret",
        Action::Persist(Fact::Launch(_)) => "persist launch",
        Action::Persist(Fact::Ending(_)) => "persist ending",
        Action::Persist(Fact::Closed(_)) => "persist closed",
        Action::Persist(Fact::Stop(_)) => "persist stop",
        Action::Persist(Fact::Clock(_)) => "persist clock",
        Action::Persist(_) => "persist",
        Action::Note(_) => "note",
        Action::Send(ToEntrypoint::Welcome { .. }) => "welcome",
        Action::Send(ToEntrypoint::Launch { .. }) => "launch",
        Action::Send(ToEntrypoint::Stop { .. }) => "stop",
        Action::Send(ToEntrypoint::Signal { .. }) => "signal",
        Action::Send(ToEntrypoint::SetDeadline { .. }) => "deadline",
        Action::Send(_) => "send",
        Action::Accept => "accept",
        Action::Refuse(_) => "refuse",
        Action::Attach => "attach",
        Action::DrainPipes => "drain",
        Action::CloseStreams => "close",
        Action::FlushAndRecord => "record",
        Action::ArmHeld(_) => "arm held",
        Action::ArmLost(_) => "arm lost",
    };
    actions.iter().map(name).collect()
}

#[test]
fn the_launch_record_comes_before_the_launch() {
    let mut machine = fresh();
    assert_eq!(machine.phase(), Phase::Waiting);
    let greeted = machine.on(hello());
    assert_eq!(orders(&greeted), ["persist secret", "accept", "welcome"]);
    assert_eq!(machine.phase(), Phase::Starting);
    assert_eq!(
        orders(&machine.on(Event::Granted(SETTINGS))),
        ["apply", "persist launch", "launch"]
    );
    assert_eq!(orders(&machine.on(launched())), ["attach", "note", "note"]);
    assert_eq!(machine.phase(), Phase::Running);
}

#[test]
fn a_grant_that_comes_first_launches_at_the_hello() {
    let mut machine = fresh();
    assert!(machine.on(Event::Granted(SETTINGS)).is_empty());
    let greeted = machine.on(hello());
    let all = [
        "persist secret",
        "accept",
        "welcome",
        "apply",
        "persist launch",
        "launch",
    ];
    assert_eq!(orders(&greeted), all);
    assert!(
        machine.on(Event::Granted(SETTINGS)).is_empty(),
        "a second grant means nothing"
    );
}

#[test]
fn a_second_entrypoint_is_refused_once_launched() {
    let mut machine = running();
    assert_eq!(orders(&machine.on(hello())), ["refuse"]);
    assert_eq!(orders(&machine.on(resume(OTHER, true))), ["refuse"]);
    let (mut later, _) = reborn(&machine);
    assert_eq!(orders(&later.on(hello())), ["refuse"]);
    assert_eq!(orders(&later.on(resume(OTHER, false))), ["refuse"]);
}

#[test]
fn before_the_launch_another_hello_takes_over() {
    let mut machine = fresh();
    machine.on(hello());
    let again = machine.on(hello());
    assert_eq!(orders(&again), ["persist secret", "accept", "welcome"]);
}

#[test]
fn an_agent_that_comes_back_takes_the_pipes_and_launches_nothing() {
    let (mut later, first) = reborn(&running());
    assert_eq!(orders(&first), ["arm lost"]);
    assert_eq!(later.phase(), Phase::Running);
    let greeted = later.on(resume(SECRET, true));
    assert_eq!(orders(&greeted), ["accept", "welcome", "attach"]);
    assert!(later.on(Event::Granted(SETTINGS)).is_empty());
    assert!(later.on(Event::Lost).is_empty(), "it is there");
}

#[test]
fn an_order_that_was_lost_with_the_agent_is_given_again_to_the_same_entrypoint() {
    let mut machine = fresh();
    machine.on(hello());
    machine.on(Event::Granted(SETTINGS));
    let (mut later, _) = reborn(&machine);
    let greeted = later.on(resume(SECRET, false));
    assert_eq!(orders(&greeted), ["accept", "welcome", "launch"]);
}

#[test]
fn a_stop_is_repeated_after_a_break_and_the_first_asker_stays() {
    let mut machine = running();
    assert_eq!(orders(&machine.on(stop("alice"))), ["stop", "note"]);
    assert_eq!(orders(&machine.on(stop("bob"))), ["stop"]);
    assert_eq!(machine.phase(), Phase::Stopping);
    let (mut later, _) = reborn(&machine);
    let greeted = later.on(resume(SECRET, true));
    assert_eq!(orders(&greeted), ["accept", "welcome", "attach", "stop"]);
    assert_eq!(later.facts().stop.as_ref().unwrap().requested_by, "alice");
}

#[test]
fn a_stop_before_the_launch_cancels_it() {
    let cancelled = ["persist stop", "persist ending", "persist closed", "close", "stop"];
    // Before and after the entrypoint has come: nothing is launched, whatever is granted.
    let mut machine = fresh();
    assert_eq!(orders(&machine.on(stop("alice"))), cancelled);
    assert!(machine.on(Event::Granted(SETTINGS)).is_empty());
    let greeted = machine.on(hello());
    assert_eq!(orders(&greeted), ["persist secret", "accept", "welcome", "stop"]);
    let mut machine = fresh();
    machine.on(hello());
    assert_eq!(orders(&machine.on(stop("alice"))), cancelled);
    assert!(machine.on(Event::Granted(SETTINGS)).is_empty());
    assert!(machine.on(stop("bob")).is_empty());
    assert_eq!(machine.phase(), Phase::Exited);
    assert_eq!(machine.facts().stop.as_ref().unwrap().requested_by, "alice");
    assert!(matches!(machine.facts().ending, Some(Ending::Cancelled { .. })));
}

#[test]
fn an_agent_that_comes_back_does_not_launch_what_was_stopped() {
    // Killed between any two of the three records.
    let mut facts = Facts::default();
    let Event::Stop(stop) = stop("alice") else {
        unreachable!()
    };
    facts.stop = Some(stop);
    let (mut later, first) = Machine::new(facts);
    assert_eq!(orders(&first), ["persist ending", "persist closed", "close"]);
    later.on(hello());
    assert!(later.on(Event::Granted(SETTINGS)).is_empty());
    let (mut last, first) = reborn(&later);
    assert_eq!(orders(&first), ["close"]);
    last.on(Event::Granted(SETTINGS));
    assert_eq!(
        orders(&last.on(hello())),
        ["persist secret", "accept", "welcome", "stop"]
    );
}

#[test]
fn the_program_is_warned_once_and_stopped_at_its_deadline() {
    let mut machine = running();
    assert_eq!(machine.next_tick(), Some(after(50)));
    assert!(machine.on(Event::Tick(after(49))).is_empty());
    assert_eq!(orders(&machine.on(Event::Tick(after(50)))), ["signal", "note"]);
    assert_eq!(machine.next_tick(), Some(after(60)));
    assert!(machine.facts().is_warned());
    let (mut machine, _) = reborn(&machine);
    machine.on(resume(SECRET, true));
    assert_eq!(machine.next_tick(), Some(after(60)), "the warning was given");
    let stopped = machine.on(Event::Tick(after(61)));
    assert_eq!(orders(&stopped), ["stop", "note"]);
    assert_eq!(machine.facts().stop.as_ref().unwrap().cause, StopCause::Deadline);
    assert_eq!(machine.next_tick(), None);
    assert!(machine.on(Event::Tick(after(62))).is_empty());
}

#[test]
fn without_an_entrypoint_the_warning_waits_and_the_deadline_does_not() {
    let mut machine = running();
    machine.on(Event::Disconnected);
    assert_eq!(machine.next_tick(), Some(after(60)));
    let mut warned = running();
    warned.on(Event::Disconnected);
    warned.on(resume(SECRET, true));
    assert_eq!(warned.next_tick(), Some(after(50)));
    machine.on(Event::Tick(after(60)));
    let greeted = machine.on(resume(SECRET, true));
    assert_eq!(orders(&greeted).last(), Some(&"stop"));
}

#[test]
fn a_moved_deadline_is_reported_again() {
    let mut machine = running();
    machine.on(Event::Tick(after(50)));
    let longer = Some(Duration::from_secs(100));
    assert_eq!(
        orders(&machine.on(Event::RunDeadline(longer))),
        ["persist clock", "deadline"]
    );
    assert!(machine.on(Event::RunDeadline(longer)).is_empty(), "a repeat is nothing");
    assert_eq!(
        machine.next_tick(),
        Some(after(90)),
        "it is warned before the new one too"
    );
    assert!(!machine.facts().is_warned());
    let (mut later, _) = reborn(&machine);
    let greeted = later.on(resume(SECRET, true));
    assert_eq!(orders(&greeted), ["accept", "welcome", "attach", "deadline"]);
    assert_eq!(later.next_tick(), Some(after(90)));
    later.on(Event::RunDeadline(None));
    assert_eq!(later.next_tick(), None);
    assert_eq!(
        later.facts().warned,
        Some(Warned {
            run_deadline: Duration::from_secs(60)
        })
    );
}

#[test]
fn a_pause_stops_the_clock_and_survives_the_agent() {
    let mut machine = running();
    assert_eq!(orders(&machine.on(Event::Paused(true, after(20)))), ["note"]);
    assert_eq!((machine.phase(), machine.next_tick()), (Phase::Paused, None));
    let (mut later, _) = reborn(&machine);
    assert_eq!(later.phase(), Phase::Paused);
    later.on(resume(SECRET, true));
    // The entrypoint reports that the program was resumed while no agent was there.
    let told = later.on(Event::Launched {
        pid: 7,
        at_unix_nanos: 1,
        has_pipes: false,
        is_paused: false,
        now: after(40),
    });
    assert_eq!(orders(&told), ["note"]);
    assert_eq!((later.phase(), later.next_tick()), (Phase::Running, Some(after(70))));
    later.on(stop("alice"));
    assert_eq!(later.phase(), Phase::Stopping);
}

#[test]
fn the_end_is_recorded_when_the_pipes_have_ended() {
    let mut machine = running();
    let ended = machine.on(Event::Exited(exited(Outcome::Code(0))));
    assert_eq!(orders(&ended), ["persist ending", "drain", "arm held"]);
    let closed = machine.on(Event::PipesEnded);
    assert_eq!(orders(&closed), ["persist closed", "close", "record"]);
    assert_eq!(machine.facts().closed, Some(Closed::Whole));
    assert!(machine.on(Event::Held).is_empty());
    let again = machine.on(Event::Exited(exited(Outcome::Code(0))));
    assert_eq!(orders(&again), ["record"], "a repeat is answered");
}

#[test]
fn pipes_that_end_first_wait_for_the_report() {
    let mut machine = running();
    assert!(machine.on(Event::PipesEnded).is_empty());
    let ended = machine.on(Event::Exited(exited(Outcome::Signal(9))));
    let all = ["persist ending", "drain", "persist closed", "close", "record"];
    assert_eq!(orders(&ended), all);
}

#[test]
fn held_pipes_are_closed_and_reported() {
    let mut machine = running();
    machine.on(Event::Exited(exited(Outcome::Code(0))));
    machine.on(Event::Held);
    assert_eq!(machine.facts().closed, Some(Closed::PipeHeld));
}

#[test]
fn what_never_ran_ends_without_pipes() {
    let mut machine = fresh();
    machine.on(hello());
    machine.on(Event::Granted(SETTINGS));
    let message = "no such program".to_owned();
    machine.on(Event::Exited(exited(Outcome::NotFound { message })));
    assert_eq!(machine.facts().closed, Some(Closed::Whole));
    assert_eq!(machine.phase(), Phase::Exited);
}

#[test]
fn an_exit_without_a_launch_is_a_lie() {
    let mut machine = fresh();
    machine.on(hello());
    let lie = machine.on(Event::Exited(exited(Outcome::Code(0))));
    assert_eq!(orders(&lie), ["refuse"]);
    assert!(machine.facts().ending.is_none());
}

#[test]
fn an_entrypoint_that_vanishes_with_its_pipes_is_lost_but_its_output_is_whole() {
    let mut machine = running();
    assert!(machine.on(Event::Disconnected).is_empty(), "the pipes are open");
    assert_eq!(orders(&machine.on(Event::PipesEnded)), ["arm lost"]);
    machine.on(Event::Lost);
    assert!(matches!(machine.facts().ending, Some(Ending::Lost { .. })));
    assert_eq!(machine.facts().closed, Some(Closed::Whole));
}

#[test]
fn an_entrypoint_that_never_comes_back_to_a_new_agent_takes_output_with_it() {
    let (mut later, _) = reborn(&running());
    later.on(Event::Lost);
    assert!(matches!(later.facts().ending, Some(Ending::Lost { .. })));
    assert_eq!(later.facts().closed, Some(Closed::EntrypointLost));
}

#[test]
fn an_exit_known_before_the_kill_keeps_its_code_though_the_pipes_are_gone() {
    let mut machine = running();
    let mut report = exited(Outcome::Code(3));
    report.stop = Some(StopCause::Terminated);
    machine.on(Event::Exited(report.clone()));
    let (mut later, first) = reborn(&machine);
    assert_eq!(orders(&first), ["arm lost"]);
    later.on(Event::Lost);
    assert_eq!(later.facts().ending, Some(Ending::Reported(report)));
    assert_eq!(later.facts().closed, Some(Closed::EntrypointLost));
}

#[test]
fn an_agent_that_comes_back_after_the_end_closes_at_once_and_answers() {
    let mut machine = running();
    machine.on(Event::Exited(exited(Outcome::Code(0))));
    machine.on(Event::PipesEnded);
    let (mut later, first) = reborn(&machine);
    assert_eq!(orders(&first), ["close"]);
    let greeted = later.on(resume(SECRET, true));
    assert_eq!(orders(&greeted), ["accept", "welcome", "record"]);
}
