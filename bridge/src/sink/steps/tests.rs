use proptest::prelude::*;
use remoteprocess_api::sink::OutputFormat;
use serde_json::{Value, json};

use super::*;

const SECOND: &str = "2026-01-01T00:00:00Z";

fn now() -> Timestamp {
    "2026-01-01T01:00:00Z".parse().unwrap()
}

fn view(status: Value) -> View {
    let process = serde_json::from_value(json!({
        "apiVersion": "remoteprocess.dev/v1alpha1", "kind": "RemoteProcess",
        "metadata": {"name": "p", "namespace": "shop", "uid": "u", "creationTimestamp": SECOND},
        "spec": {"image": "i", "command": ["x"]}, "status": status,
    }));
    View::new(process.unwrap(), "events")
}

fn planner(has_output: bool) -> Planner {
    let output = SinkOutput {
        format: OutputFormat::Chunks,
        streams: None,
    };
    Planner {
        author: Author::new("shop", "events"),
        output: has_output.then_some(output),
    }
}

/// The steps up to the first at which the worker has to wait, in short.
fn steps(planner: &Planner, view: &View, cursor: &mut Cursor) -> Vec<String> {
    let mut found = Vec::new();
    loop {
        match planner.next(view, cursor, now()) {
            Step::Send(event, note) => {
                found.push(event.id.strip_prefix("u.").unwrap().to_owned());
                note.apply(cursor);
            }
            Step::Read(attempt) => {
                found.push(format!("read {attempt}"));
                cursor.pass(Mark::output(attempt));
            }
            Step::Skip(attempt) => planner.skip(cursor, attempt),
            Step::GiveUp => {
                found.push("give up".into());
                cursor.is_unsealed = true;
            }
            Step::Wait(until) => {
                found.extend(until.map(|until| format!("until {until}")));
                return found;
            }
            Step::Done => {
                found.push("done".into());
                return found;
            }
        }
        assert!(found.len() < 100, "{found:?}");
    }
}

fn sealed() -> Value {
    json!([{"type": "OutputSealed", "status": "True", "reason": "Archived", "message": "", "lastTransitionTime": SECOND}])
}

fn attempt(number: u32, times: &[&str]) -> Value {
    let mut record = json!({"number": number});
    for name in times {
        record[*name] = json!(SECOND);
    }
    record
}

#[test]
fn each_transition_is_found_whenever_the_bridge_looks() {
    let granted = attempt(1, &["grantedAt"]);
    let started = attempt(1, &["grantedAt", "startedAt"]);
    let mut ended = attempt(1, &["grantedAt", "startedAt", "finishedAt"]);
    ended["exit"] = json!({"code": 3, "source": "Entrypoint"});
    let moments = [
        json!({}),
        json!({"phase": "Pending", "attempt": 1, "attempts": [attempt(1, &[])]}),
        json!({"phase": "Starting", "attempt": 1, "attempts": [granted]}),
        json!({"phase": "Running", "attempt": 1, "attempts": [started]}),
        json!({"phase": "Pending", "attempt": 2, "attempts": [ended, attempt(2, &[])]}),
        json!({"phase": "Running", "attempt": 2, "attempts": [ended, attempt(2, &["grantedAt", "startedAt"])]}),
        json!({"phase": "Succeeded", "attempt": 2, "finishedAt": SECOND, "conditions": sealed(),
               "attempts": [ended, attempt(2, &["grantedAt", "startedAt", "finishedAt"])]}),
    ];
    for has_output in [false, true] {
        let mut all = vec![
            "created",
            "1.starting",
            "1.started",
            "1.ended",
            "2.starting",
            "2.started",
            "2.ended",
            "finished",
            "done",
        ];
        if has_output {
            all.insert(3, "read 1");
            all.insert(7, "read 2");
        }
        // It looks only at these moments, and at the end.
        for seen in 0..1_u32 << (moments.len() - 1) {
            let mut cursor = Cursor::new("u");
            let mut found = Vec::new();
            for (index, moment) in moments.iter().enumerate() {
                if index == moments.len() - 1 || seen & (1 << index) != 0 {
                    found.extend(steps(&planner(has_output), &view(moment.clone()), &mut cursor));
                    // A restart: only the annotation is left.
                    cursor = Cursor::read(Some(&cursor.to_text()), "u");
                }
            }
            assert_eq!(found, all, "{seen:b}");
        }
    }
}

#[test]
fn what_never_began_has_neither_start_nor_output() {
    let status = json!({"phase": "Failed", "reason": "ImagePull", "attempt": 1, "finishedAt": SECOND,
                        "conditions": sealed(), "attempts": [attempt(1, &[])]});
    let found = steps(&planner(true), &view(status), &mut Cursor::new("u"));
    assert_eq!(found, ["created", "1.ended", "finished", "done"]);
}

#[test]
fn attempts_without_a_record_have_their_output() {
    let status = json!({"phase": "Running", "attempt": 3, "attempts": [attempt(3, &["grantedAt", "startedAt"])]});
    let found = steps(&planner(true), &view(status.clone()), &mut Cursor::new("u"));
    assert_eq!(
        found,
        ["created", "read 1", "read 2", "3.starting", "3.started", "read 3"]
    );
    let found = steps(&planner(false), &view(status), &mut Cursor::new("u"));
    assert_eq!(found, ["created", "3.starting", "3.started"]);
}

#[test]
fn a_bridge_that_was_away_waits_for_the_seal_as_well() {
    let ended =
        json!({"phase": "Succeeded", "attempt": 1, "finishedAt": SECOND, "attempts": [attempt(1, &["grantedAt"])]});
    let mut view = view(ended);
    view.since = Some("2026-01-01T00:59:30Z".parse().unwrap());
    let mut cursor = Cursor::new("u");
    cursor.pass(Mark::ended(1));
    assert_eq!(
        steps(&planner(false), &view, &mut cursor),
        ["until 2026-01-01T01:00:30Z"]
    );
}

#[test]
fn the_last_event_waits_for_the_seal_but_not_forever() {
    let ended = |at: &str| json!({"phase": "Succeeded", "finishedAt": at, "attempt": 1, "attempts": [attempt(1, &["grantedAt"])], "output": {"tail": "x"}});
    let mut cursor = Cursor::new("u");
    let found = steps(&planner(false), &view(ended("2026-01-01T00:59:30Z")), &mut cursor);
    assert_eq!(
        found,
        ["created", "1.starting", "1.ended", "until 2026-01-01T01:00:30Z"]
    );
    let late = view(ended("2026-01-01T00:58:00Z"));
    let found = steps(&planner(false), &late, &mut cursor.clone());
    assert_eq!(found, ["give up", "finished", "done"]);
    // Whatever is sealed later, the event that is sent again is the same.
    cursor.is_unsealed = true;
    let event = |view: &View| match planner(false).next(view, &cursor, now()) {
        Step::Send(event, _) => event.to_json(),
        other => panic!("{other:?}"),
    };
    let mut sealed_later = ended("2026-01-01T00:58:00Z");
    sealed_later["conditions"] = sealed();
    sealed_later["output"]["tail"] = json!("xy");
    assert_eq!(event(&view(sealed_later)), event(&late));
}

#[test]
fn pauses_and_stops_are_told_as_long_as_they_are_seen() {
    let running = |phase: &str, paused: Option<&str>| {
        let mut record = attempt(1, &["grantedAt", "startedAt"]);
        record["pausedAt"] = json!(paused);
        view(json!({"phase": phase, "attempt": 1, "attempts": [record]}))
    };
    let mut cursor = Cursor::new("u");
    let mut see = |view: &View| {
        let found = steps(&planner(false), view, &mut cursor);
        cursor = Cursor::read(Some(&cursor.to_text()), "u");
        found
    };
    let paused = running("Paused", Some("2026-01-01T00:00:10Z"));
    assert_eq!(
        see(&paused),
        ["created", "1.starting", "1.started", "1.paused.1767225610"]
    );
    assert!(see(&paused).is_empty(), "once");
    let again = running("Paused", Some("2026-01-01T00:00:20Z"));
    assert_eq!(see(&again), ["1.resumed.1767225610", "1.paused.1767225620"]);
    assert_eq!(see(&running("Running", None)), ["1.resumed.1767225620"]);
    assert_eq!(see(&running("Stopping", None)), ["1.stopping"]);
    assert!(see(&running("Stopping", None)).is_empty(), "once");
}

#[test]
fn a_pause_that_the_end_of_the_process_ended_is_not_told_as_over() {
    let mut record = attempt(1, &["grantedAt", "startedAt"]);
    record["pausedAt"] = json!(SECOND);
    let paused = view(json!({"phase": "Paused", "attempt": 1, "attempts": [record]}));
    let mut cursor = Cursor::new("u");
    steps(&planner(false), &paused, &mut cursor);
    let ended = view(
        json!({"phase": "Failed", "attempt": 1, "finishedAt": SECOND, "conditions": sealed(),
                            "attempts": [attempt(1, &["grantedAt", "startedAt", "finishedAt"])]}),
    );
    assert_eq!(
        steps(&planner(false), &ended, &mut cursor),
        ["1.ended", "finished", "done"]
    );
}

#[test]
fn a_process_that_is_gone_has_its_last_events() {
    let status = json!({"phase": "Failed", "attempt": 1, "finishedAt": SECOND,
                        "attempts": [attempt(1, &["grantedAt", "startedAt", "finishedAt"])]});
    let mut cursor = Cursor::new("u");
    cursor.pass(Mark::started(1));
    cursor.reach(1, OutputStream::Stderr, 7);
    let gone = view(status).deleted();
    let event = {
        let mut cursor = cursor.clone();
        planner(true).skip(&mut cursor, 1);
        cursor.pass(Mark::TOLD);
        match planner(true).next(&gone, &cursor, now()) {
            Step::Send(event, _) => event,
            other => panic!("{other:?}"),
        }
    };
    let expected =
        json!([{"attempt": 1, "stream": "stdout", "from": 0}, {"attempt": 1, "stream": "stderr", "from": 7}]);
    assert_eq!(
        (event.id.as_str(), &event.data["unsentOutput"]),
        ("u.deleted", &expected)
    );
    assert_eq!(
        steps(&planner(true), &gone, &mut cursor),
        ["1.ended", "finished", "deleted", "done"]
    );
    let running = json!({"phase": "Running", "attempt": 1, "attempts": [attempt(1, &["grantedAt", "startedAt"])]});
    let found = steps(&planner(true), &view(running).deleted(), &mut Cursor::new("u"));
    assert_eq!(found, ["created", "1.starting", "1.started", "deleted", "done"]);
    let mut cursor = Cursor::new("u");
    cursor.pass(Mark::FINISHED);
    assert_eq!(steps(&planner(true), &gone, &mut cursor), ["done"], "all was sent");
}

/// With a destination that is slow, the status is ahead of what is sent.
#[test]
fn a_stop_is_not_told_before_the_start_of_its_attempt() {
    let records = [
        attempt(1, &["grantedAt", "startedAt", "finishedAt"]),
        attempt(2, &["grantedAt", "startedAt"]),
    ];
    let stopping = view(json!({"phase": "Stopping", "attempt": 2, "attempts": records}));
    let mut cursor = Cursor::new("u");
    cursor.pass(Mark::started(1));
    assert_eq!(planner(true).next(&stopping, &cursor, now()), Step::Read(1));
    let found = steps(&planner(true), &stopping, &mut cursor);
    assert_eq!(
        found,
        ["read 1", "1.ended", "2.starting", "2.started", "2.stopping", "read 2"]
    );
    let waits = view(json!({"phase": "Stopping", "attempt": 1, "attempts": [attempt(1, &[])]}));
    assert_eq!(steps(&planner(false), &waits, &mut Cursor::new("u")), ["created"]);
}

#[test]
fn the_rest_of_output_that_is_unknown_is_noted_as_not_sent() {
    let (planner, mut cursor) = (planner(true), Cursor::new("u"));
    planner.pass_unknown(&mut cursor, 1);
    assert_eq!(cursor.unsent, [], "no byte of it was seen");
    cursor.reach(2, OutputStream::Stdout, 7);
    planner.pass_unknown(&mut cursor, 2);
    let unsent: Vec<_> = cursor
        .unsent
        .iter()
        .map(|unsent| (unsent.attempt, unsent.stream, unsent.from))
        .collect();
    assert_eq!(unsent, [(2, OutputStream::Stdout, 7), (2, OutputStream::Stderr, 0)]);
    assert!(cursor.mark >= Mark::output(2));
}

proptest! {
    /// An annotation can be anything that a user writes.
    #[test]
    fn each_cursor_that_is_accepted_comes_to_an_end(number in any::<u32>(), step in any::<u8>(), is_deleted in any::<bool>()) {
        let ended = json!({"phase": "Failed", "attempt": 1, "finishedAt": SECOND, "conditions": sealed(),
                           "attempts": [attempt(1, &["grantedAt", "startedAt", "finishedAt"])]});
        let view = if is_deleted { view(ended).deleted() } else { view(ended) };
        for number in [number, number % 3, u32::MAX, u32::MAX - 1] {
            let text = format!(r#"{{"u":"u","m":[{number},{step}]}}"#);
            let found = steps(&planner(true), &view, &mut Cursor::read(Some(&text), "u"));
            prop_assert_eq!(found.last().map(String::as_str), Some("done"));
        }
    }

    /// Restarts forget everything but the annotation, and statuses move on meanwhile: no transition is left out or told
    /// before an earlier one.
    #[test]
    fn ids_are_in_order_and_the_same_after_each_restart(
        attempts in 1_u32..5, restarts in proptest::collection::vec(0_usize..30, 0..6), has_output in any::<bool>(),
    ) {
        let records: Vec<Value> = (1..=attempts).map(|n| attempt(n, &["grantedAt", "startedAt", "finishedAt"])).collect();
        let status = json!({"phase": "Succeeded", "attempt": attempts, "finishedAt": SECOND, "conditions": sealed(),
                            "attempts": records});
        let (view, planner) = (view(status), planner(has_output));
        let whole = steps(&planner, &view, &mut Cursor::new("u"));
        for stop in restarts {
            let mut cursor = Cursor::new("u");
            for _ in 0..stop {
                match planner.next(&view, &cursor, now()) {
                    Step::Send(_, note) => note.apply(&mut cursor),
                    Step::Read(number) => cursor.pass(Mark::output(number)),
                    _ => break,
                }
            }
            let mut read = Cursor::read(Some(&cursor.to_text()), "u");
            let rest = steps(&planner, &view, &mut read);
            prop_assert!(whole.ends_with(&rest));
            prop_assert_eq!(rest.len(), whole.len() - stop.min(whole.len() - 1));
        }
    }
}
