use remoteprocess_api::RemoteProcess;
use serde_json::{Value, json};

use super::super::cursor::{Mark, annotation};
use super::super::events::Author;
use super::*;

fn book() -> Book {
    let author = Author::new("shop", "events");
    let mut book = Book::new(Planner { author, output: None });
    book.begin();
    book.complete();
    book
}

fn view(uid: &str, status: Value, cursor: Option<&Cursor>) -> View {
    let mut process: RemoteProcess = serde_json::from_value(json!({
        "apiVersion": "remoteprocess.dev/v1alpha1", "kind": "RemoteProcess",
        "metadata": {"name": uid, "namespace": "shop", "uid": uid},
        "spec": {"image": "i", "command": ["x"]}, "status": status,
    }))
    .unwrap();
    let annotations = cursor.map(|cursor| (annotation("events"), cursor.to_text()));
    process.metadata.annotations = Some(annotations.into_iter().collect());
    View::new(process, "events")
}

fn ended() -> Value {
    json!({"phase": "Succeeded", "finishedAt": "2026-01-01T00:00:00Z",
           "conditions": [{"type": "OutputSealed", "status": "True", "reason": "Archived", "message": "",
                           "lastTransitionTime": "2026-01-01T00:00:00Z"}]})
}

fn at(uid: &str, mark: Mark) -> Cursor {
    let mut cursor = Cursor::new(uid);
    cursor.pass(mark);
    cursor
}

/// The last job of a process has ended.
fn end(book: &mut Book, uid: &str, report: Report) {
    let Some(State::Works(job, _)) = book.entries.get(uid).map(|entry| &entry.state) else {
        panic!("no worker: {uid}");
    };
    let job = *job;
    book.ended(uid, job, report);
}

fn take(book: &mut Book) -> Vec<String> {
    std::iter::from_fn(|| book.take(Instant::now()))
        .map(|job| job.uid)
        .collect()
}

fn report(cursor: &Cursor, end: End) -> Report {
    Report {
        cursor: cursor.clone(),
        noted: cursor.clone(),
        end,
    }
}

#[tokio::test]
async fn what_has_nothing_to_send_needs_no_worker() {
    let mut book = book();
    let created = at("waits", Mark::CREATED);
    book.see(view("new", json!({}), None));
    book.see(view("waits", json!({"phase": "Pending"}), Some(&created)));
    book.see(view("done", ended(), Some(&at("done", Mark::FINISHED))));
    assert_eq!(book.waiting(), 1);
    assert_eq!(take(&mut book), ["new"]);
    book.see(view("waits", ended(), Some(&created)));
    assert_eq!(take(&mut book), ["waits"]);
    assert!(!book.entries.contains_key("done"), "it is not kept in memory");
}

#[tokio::test]
async fn an_older_state_of_what_is_done_is_no_news() {
    let mut book = book();
    book.see(view("p", ended(), None));
    assert_eq!(take(&mut book), ["p"]);
    end(&mut book, "p", report(&at("p", Mark::FINISHED), End::Done));
    // The watch is behind: this was written before our annotation.
    book.see(view("p", ended(), None));
    assert!(take(&mut book).is_empty());
    book.see(view("p", ended(), Some(&at("p", Mark::FINISHED))));
    assert!(book.entries.is_empty());
    book.see(view("p", ended(), Some(&at("p", Mark::FINISHED))));
    assert!(book.entries.is_empty() && take(&mut book).is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_failure_is_tried_again_later_whatever_changes() {
    let mut book = book();
    book.see(view("p", json!({}), None));
    take(&mut book);
    end(
        &mut book,
        "p",
        report(&Cursor::new("p"), End::Failed(BridgeReason::Forbidden, "no".into())),
    );
    assert_eq!(
        (book.problem().map(|(reason, _)| *reason), book.waiting()),
        (Some(BridgeReason::Forbidden), 1)
    );
    book.see(view("p", json!({"phase": "Pending"}), None));
    assert!(take(&mut book).is_empty());
    tokio::time::advance(Duration::from_millis(500)).await;
    assert_eq!(take(&mut book), ["p"]);
    end(&mut book, "p", report(&at("p", Mark::CREATED), End::Waiting));
    assert!(book.problem().is_none() && take(&mut book).is_empty());
}

#[tokio::test]
async fn what_a_list_does_not_show_is_gone() {
    let mut book = book();
    let created = |uid| at(uid, Mark::CREATED);
    for uid in ["here", "gone", "moved"] {
        book.see(view(uid, json!({"phase": "Pending"}), Some(&created(uid))));
    }
    book.see(view("sent", ended(), None));
    assert_eq!(take(&mut book), ["sent"]);
    end(&mut book, "sent", report(&at("sent", Mark::FINISHED), End::Done));
    book.begin();
    book.see(view("here", json!({"phase": "Pending"}), Some(&created("here"))));
    book.forget("moved");
    book.complete();
    assert_eq!(take(&mut book), ["gone"], "its last event is still to be sent");
    assert_eq!(book.gone, 1);
    end(&mut book, "gone", report(&at("gone", Mark::FINISHED), End::Done));
    let left: Vec<&str> = book.entries.keys().map(String::as_str).collect();
    assert_eq!((book.gone, left), (0, vec!["here"]));
}

#[tokio::test]
async fn what_is_selected_again_has_one_worker_that_counts() {
    let mut book = book();
    book.see(view("p", json!({}), None));
    let first = book.take(Instant::now()).unwrap();
    book.forget("p");
    assert!(first.stop.is_cancelled());
    book.see(view("p", json!({}), None));
    let second = book.take(Instant::now()).unwrap();
    book.ended("p", first.number, report(&at("p", Mark::FINISHED), End::Done));
    assert!(take(&mut book).is_empty(), "the second works");
    book.ended("p", second.number, report(&at("p", Mark::CREATED), End::Waiting));
    assert_eq!(book.entries["p"].cursor.mark, Mark::CREATED);
}

#[tokio::test(start_paused = true)]
async fn transitions_go_before_output() {
    let running = json!({"phase": "Running", "attempt": 1,
                         "attempts": [{"number": 1, "grantedAt": "2026-01-01T00:00:00Z", "startedAt": "2026-01-01T00:00:00Z"}]});
    let mut book = book();
    book.planner.output = Some(remoteprocess_api::sink::SinkOutput::default());
    book.see(view("a-reads", running.clone(), Some(&at("a-reads", Mark::started(1)))));
    tokio::time::advance(Duration::from_millis(1)).await;
    book.see(view("b-new", running, None));
    assert_eq!(book.waiting(), 1);
    assert_eq!(take(&mut book), ["b-new", "a-reads"]);
    end(
        &mut book,
        "a-reads",
        report(&at("a-reads", Mark::started(1)), End::Yielded),
    );
    assert!(take(&mut book).is_empty(), "not at once");
    tokio::time::advance(AGAIN).await;
    assert_eq!(take(&mut book), ["a-reads"]);
}

#[tokio::test]
async fn an_object_that_cannot_be_read_is_not_gone() {
    let mut book = book();
    book.see(view("here", json!({}), Some(&at("here", Mark::CREATED))));
    book.begin();
    book.keep("here");
    book.complete();
    assert_eq!((book.gone, take(&mut book)), (0, vec![]));
}

#[tokio::test(start_paused = true)]
async fn another_spec_keeps_what_is_not_done() {
    let mut former = book();
    for uid in ["here", "went", "moved"] {
        former.see(view(uid, json!({}), Some(&at(uid, Mark::CREATED))));
    }
    former.delete(&view("gone", json!({}), None));
    for uid in ["behind", "done", "late"] {
        former.see(view(uid, ended(), None));
    }
    assert_eq!(take(&mut former), ["behind", "done", "gone", "late"]);
    let cut = Report {
        cursor: at("behind", Mark::started(1)),
        noted: Cursor::new("behind"),
        end: End::Stopped,
    };
    end(&mut former, "behind", cut);
    end(&mut former, "gone", report(&Cursor::new("gone"), End::Stopped));
    end(&mut former, "done", report(&at("done", Mark::FINISHED), End::Done));
    let mut next = Book::new(former.planner.clone());
    next.adopt(former);
    assert!(!next.entries.contains_key("done"));
    next.begin();
    next.see(view("here", json!({}), Some(&at("here", Mark::CREATED))));
    next.forget("moved");
    for uid in ["behind", "late"] {
        next.see(view(uid, ended(), None));
    }
    next.complete();
    let jobs: Vec<Job> = std::iter::from_fn(|| next.take(Instant::now())).collect();
    let cursors: Vec<(&str, Mark)> = jobs.iter().map(|job| (&*job.uid, job.cursors.0.mark)).collect();
    let none = Mark::default();
    assert_eq!(
        cursors,
        [
            ("behind", Mark::started(1)),
            ("gone", none),
            ("late", none),
            ("went", Mark::CREATED)
        ]
    );
    assert_eq!(jobs[0].cursors.1.mark, none, "its cursor is still to be noted");
    assert_eq!(next.gone, 2);
}

#[tokio::test]
async fn a_problem_is_over_when_the_worker_shows_it() {
    let mut book = book();
    let fail = |book: &mut Book| {
        let failed = End::Failed(BridgeReason::OutputUnavailable, "no".into());
        end(book, "p", report(&Cursor::new("p"), failed));
    };
    book.see(view("p", json!({}), None));
    take(&mut book);
    fail(&mut book);
    let job = book.take(Instant::now() + Duration::from_secs(1)).unwrap();
    assert!(book.problem().is_some());
    job.signs.is_well.store(true, Ordering::Relaxed);
    assert!(book.problem().is_none());
    fail(&mut book);
    assert!(book.problem().is_some());
}

#[tokio::test]
async fn only_transitions_are_urgent() {
    let running = json!({"phase": "Running", "attempt": 1,
                         "attempts": [{"number": 1, "grantedAt": "2026-01-01T00:00:00Z", "startedAt": "2026-01-01T00:00:00Z"}]});
    let mut book = book();
    book.planner.output = Some(remoteprocess_api::sink::SinkOutput::default());
    book.see(view("reads", running, Some(&at("reads", Mark::started(1)))));
    assert_eq!(book.urgent(Instant::now(), 9), 0);
    for uid in ["a", "b", "c"] {
        book.see(view(uid, json!({}), None));
    }
    assert_eq!((book.urgent(Instant::now(), 9), book.urgent(Instant::now(), 2)), (3, 2));
}

#[tokio::test]
async fn last_events_are_bounded() {
    let mut book = book();
    for number in 0..MAX_GONE + 2 {
        book.delete(&view(&format!("p{number}"), json!({}), None));
    }
    assert_eq!(
        (book.gone, book.entries.len(), book.take_dropped()),
        (MAX_GONE, MAX_GONE, 2)
    );
    book.delete(&view("done", ended(), Some(&at("done", Mark::FINISHED))));
    assert_eq!(book.take_dropped(), 0, "it had nothing to send");
}
