use remoteprocess_api::RemoteProcess;
use remoteprocess_api::bridge::BridgeReason;
use serde_json::{Value, json};

use super::super::cursor::{Mark, annotation};
use super::super::events::Author;
use super::*;
use crate::source::SourceError;

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

fn problem(reason: BridgeReason) -> Problem {
    SourceError::new(reason, "no").into()
}

fn report(cursor: &Cursor, end: End) -> Report {
    Report {
        cursors: Some((cursor.clone(), cursor.clone())),
        end,
    }
}

/// Of a worker that could not read its process.
fn unread(end: End) -> Report {
    Report { cursors: None, end }
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
    assert_eq!(kept(&book), 0, "nobody needs it");
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
        report(&Cursor::new("p"), End::Failed(problem(BridgeReason::Forbidden))),
    );
    assert_eq!(
        (book.problem().map(|problem| problem.reason), book.waiting()),
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
    let Seen::Kept(kept) = &book.entries["p"].seen else {
        panic!("it is not kept");
    };
    assert_eq!(kept.cursor.mark, Mark::CREATED);
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
async fn output_that_is_not_read_waits_as_well() {
    let record = json!({"number": 1, "grantedAt": "2026-01-01T00:00:00Z", "startedAt": "2026-01-01T00:00:00Z"});
    let running = json!({"phase": "Running", "attempt": 1, "attempts": [record]});
    let over = json!({"phase": "Failed", "attempt": 1, "attempts": [record]});
    let mut book = book();
    book.planner.output = Some(remoteprocess_api::sink::SinkOutput::default());
    let started = |uid| at(uid, Mark::started(1));
    book.see(view("runs", running.clone(), Some(&started("runs"))));
    assert_eq!(book.waiting(), 0, "nobody knows whether it writes anything");
    book.see(view("over", over, Some(&started("over"))));
    book.see(view("writes", running, Some(&started("writes"))));
    assert_eq!(book.waiting(), 1);
    let jobs: Vec<Job> = std::iter::from_fn(|| book.take(Instant::now())).collect();
    let writes = jobs.iter().find(|job| job.uid == "writes").unwrap();
    writes.signs.is_behind.store(true, Ordering::Relaxed);
    assert_eq!(book.waiting(), 1, "its worker says so");
    end(&mut book, "writes", report(&started("writes"), End::Yielded));
    assert_eq!(book.waiting(), 1, "it made room for others, and has more");
}

#[tokio::test]
async fn what_the_destination_refused_is_known_until_it_takes_something() {
    let mut book = book();
    book.see(view("p", json!({}), None));
    let next = |book: &mut Book, end_: End| {
        let job = book.take(Instant::now() + Duration::from_secs(60)).unwrap();
        end(book, "p", report(&Cursor::new("p"), end_));
        job.is_suspect
    };
    let refused = || End::Refused(problem(BridgeReason::Unreachable));
    assert!(!next(&mut book, End::Failed(problem(BridgeReason::Forbidden))));
    assert!(!next(&mut book, refused()));
    assert!(next(&mut book, refused()) && book.problem().is_some());
    assert!(next(&mut book, End::Yielded));
    assert!(!next(&mut book, End::Yielded) && book.problem().is_none());
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
        cursors: Some((at("behind", Mark::started(1)), Cursor::new("behind"))),
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
        let failed = End::Failed(problem(BridgeReason::OutputUnavailable));
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

/// The number of processes whose state is in memory.
fn kept(book: &Book) -> usize {
    book.entries.values().filter(|entry| entry.view().is_some()).count()
}

#[tokio::test]
async fn the_states_of_a_long_list_are_not_all_in_memory() {
    let mut book = book();
    book.begin();
    for number in 0..3 * MAX_KEPT {
        book.see(view(&format!("p{number:05}"), ended(), None));
    }
    book.complete();
    assert_eq!((kept(&book), book.waiting()), (MAX_KEPT, 3 * MAX_KEPT));
    let jobs: Vec<Job> = std::iter::from_fn(|| book.take(Instant::now())).collect();
    let unread = jobs.iter().filter(|job| job.unread.is_some()).count();
    assert_eq!((jobs.len(), unread), (3 * MAX_KEPT, 2 * MAX_KEPT));
    for job in jobs {
        let cursor = at(&job.uid, Mark::CREATED);
        book.ended(&job.uid, job.number, report(&cursor, End::Yielded));
    }
    assert_eq!(kept(&book), MAX_KEPT, "a worker that ends leaves its place");
}

#[tokio::test]
async fn what_is_not_kept_keeps_its_cursor_and_is_seen_again() {
    let mut book = book();
    book.seats = Arc::new(Semaphore::new(0));
    book.see(view("p", json!({}), None));
    let job = book.take(Instant::now()).unwrap();
    assert!(job.unread.is_some() && job.view.borrow().name() == "p");
    // Its worker has read it, has sent an event, and could not note that.
    job.unread.unwrap().send_replace(Arc::new(view("p", json!({}), None)));
    let behind = Report {
        cursors: Some((at("p", Mark::CREATED), Cursor::new("p"))),
        end: End::Yielded,
    };
    book.ended("p", job.number, behind);
    assert_eq!(kept(&book), 0);
    let job = book.take(Instant::now() + AGAIN).unwrap();
    assert_eq!(job.cursors.0.mark, Mark::CREATED, "it is not sent again");
    // The worker ends before it could read the process.
    book.ended("p", job.number, unread(End::Stopped));
    assert!(take(&mut book).is_empty());
    book.seats = Arc::new(Semaphore::new(1));
    book.see(view("p", ended(), None));
    let job = book.take(Instant::now()).unwrap();
    assert_eq!(
        (job.cursors.0.mark, job.cursors.1.mark),
        (Mark::CREATED, Mark::default())
    );
}

#[tokio::test]
async fn what_the_watch_shows_while_a_worker_reads_in_vain_counts() {
    let (created, started) = (at("p", Mark::CREATED), at("p", Mark::started(1)));
    for (is_gone, has_moved) in [(false, false), (false, true), (true, false), (true, true)] {
        let mut book = book();
        book.seats = Arc::new(Semaphore::new(0));
        let shown = view("p", ended(), Some(&created));
        book.see(shown.clone());
        if has_moved {
            let job = book.take(Instant::now()).unwrap();
            job.unread.unwrap().send_replace(Arc::new(shown.clone()));
            // It could not note how far it came.
            let cursors = Some((started.clone(), created.clone()));
            let end = End::Yielded;
            book.ended("p", job.number, Report { cursors, end });
        }
        let job = book.take(Instant::now() + AGAIN).unwrap();
        assert!(job.unread.is_some());
        match is_gone {
            true => book.delete(&shown),
            false => book.see(shown),
        }
        let failed = End::Failed(problem(BridgeReason::Unreachable));
        book.ended("p", job.number, unread(failed));
        let job = book.take(Instant::now() + Duration::from_secs(60)).unwrap();
        let moved = has_moved.then(|| started.clone());
        if is_gone {
            let cursor = moved.unwrap_or_else(|| created.clone());
            assert_eq!(job.cursors, (cursor, created.clone()), "{has_moved}");
        } else {
            let cursor = moved.map(|cursor| cursor.to_text());
            assert_eq!(
                job.view.borrow().cursor,
                cursor,
                "it begins at the annotation, or after it"
            );
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_waits_for_the_end_of_its_output_is_not_read_each_second() {
    let record = json!({"number": 1, "grantedAt": "2026-01-01T00:00:00Z", "startedAt": "2026-01-01T00:00:00Z"});
    let failed = json!({"phase": "Failed", "attempt": 1, "attempts": [record]});
    let mut book = book();
    book.planner.output = Some(remoteprocess_api::sink::SinkOutput::default());
    let started = at("p", Mark::started(1));
    book.see(view("p", failed.clone(), Some(&started)));
    assert_eq!(take(&mut book), ["p"]);
    end(&mut book, "p", report(&started, End::Unsealed));
    tokio::time::advance(2 * AGAIN).await;
    assert!(take(&mut book).is_empty());
    tokio::time::advance(UNSEALED).await;
    assert_eq!(take(&mut book), ["p"]);
    end(&mut book, "p", report(&started, End::Unsealed));
    book.see(view("p", failed, Some(&started)));
    assert_eq!(take(&mut book), ["p"], "it has changed");
}

#[tokio::test]
async fn what_went_unseen_and_was_not_kept_is_counted() {
    let mut book = book();
    book.seats = Arc::new(Semaphore::new(0));
    book.see(view("p", json!({}), None));
    book.begin();
    book.complete();
    assert!(book.entries.is_empty() && take(&mut book).is_empty());
    assert_eq!(book.take_dropped(), 1);
    book.see(view("q", json!({}), None));
    book.delete(&view("q", ended(), None));
    assert_eq!(
        (kept(&book), take(&mut book)),
        (1, vec!["q".to_owned()]),
        "the watch has shown its last state"
    );
}

#[tokio::test]
async fn an_older_state_does_not_take_the_place_of_one_that_was_read() {
    let mut book = book();
    let with = |version: &str, status: Value| {
        let mut view = view("p", status, Some(&at("p", Mark::CREATED)));
        view.process.metadata.resource_version = Some(version.to_owned());
        view
    };
    book.see(with("10", json!({"phase": "Running"})));
    book.see(with("9", json!({"phase": "Pending"})));
    let phase = |book: &Book| book.entries["p"].view().unwrap().phase();
    assert_eq!(phase(&book), Some(remoteprocess_api::Phase::Running));
    book.see(with("11", json!({"phase": "Stopping"})));
    assert_eq!(phase(&book), Some(remoteprocess_api::Phase::Stopping));
}
