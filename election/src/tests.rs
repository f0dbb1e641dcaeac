use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use http::Method;
use rstest::rstest;
use serde_json::{Value, json};

use super::*;
use fake_api::Call;

mod belonging;
mod deleted;

#[allow(dead_code, unreachable_pub, reason = "only a part of it is used here")]
#[path = "../../operator/src/fake_api.rs"]
mod fake_api;

fn labels() -> Mark {
    Mark::Labels(vec![("app".into(), "ours".into())])
}

fn candidate(identity: &str) -> Candidate {
    Candidate {
        namespace: "system".into(),
        lease: "work".into(),
        identity: identity.into(),
        mark: labels(),
        timing: Timing::default(),
    }
}

fn held_by(holder: &str) -> LeaseSpec {
    LeaseSpec {
        holder_identity: (!holder.is_empty()).then(|| holder.to_owned()),
        lease_duration_seconds: Some(15),
        lease_transitions: Some(4),
        ..LeaseSpec::default()
    }
}

#[rstest]
#[case::ours("a", 0, Step::Renew)]
#[case::free("", 0, Step::Take)]
#[case::fresh("b", 14, Step::Wait)]
#[case::silent("b", 15, Step::Take)]
fn decides(#[case] holder: &str, #[case] silent: u64, #[case] expected: Step) {
    assert_eq!(
        decide(&held_by(holder), Duration::from_secs(silent), &candidate("a")),
        expected
    );
}

#[test]
fn a_clock_that_is_wrong_elsewhere_does_not_count() {
    let mut lease = held_by("b");
    lease.renew_time = Some(MicroTime("2001-01-01T00:00:00Z".parse().unwrap()));
    assert_eq!(decide(&lease, Duration::from_secs(1), &candidate("a")), Step::Wait);
}

#[test]
fn a_new_holder_is_a_transition_and_a_renewal_is_none() {
    let now = Timestamp::now();
    let taken = claimed(Some(&held_by("b")), &candidate("a"), now);
    assert_eq!(
        (taken.lease_transitions, taken.holder_identity.as_deref()),
        (Some(5), Some("a"))
    );
    let later = now + Duration::from_secs(2);
    let renewed = claimed(Some(&taken), &candidate("a"), later);
    assert_eq!(
        (renewed.lease_transitions, renewed.acquire_time),
        (Some(5), taken.acquire_time)
    );
    assert_eq!(renewed.renew_time, Some(MicroTime(later)));
}

#[test]
fn work_stops_before_another_may_take_over() {
    let Timing {
        lease_duration,
        renew_deadline,
        retry_period,
        ..
    } = Timing::default();
    assert!(renew_deadline + retry_period < lease_duration);
}

/// An API server that keeps one Lease, with its optimistic lock.
#[derive(Clone, Default)]
struct Server(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    lease: Option<Value>,
    version: u64,
    is_down: bool,
    /// A candidate leads, or has led.
    has_led: bool,
    /// The answer to the next creation is lost.
    loses_creation: bool,
}

impl Server {
    fn client(&self) -> Client {
        let server = self.clone();
        fake_api::client(move |call| server.answer(&call))
    }

    fn answer(&self, call: &Call) -> (u16, Value) {
        let mut state = self.0.lock().unwrap();
        if state.is_down {
            return fake_api::refusal(500, "InternalError");
        }
        if call.method == Method::GET {
            return state
                .lease
                .clone()
                .map_or_else(|| fake_api::refusal(404, "NotFound"), |lease| (200, lease));
        }
        let current = state
            .lease
            .as_ref()
            .map(|lease| lease["metadata"]["resourceVersion"].clone());
        if current.unwrap_or(Value::Null) != call.body["metadata"]["resourceVersion"] {
            return fake_api::refusal(409, "Conflict");
        }
        state.version += 1;
        let mut lease = call.body.clone();
        lease["metadata"]["resourceVersion"] = json!(state.version.to_string());
        state.lease = Some(lease.clone());
        if call.method == Method::POST && std::mem::take(&mut state.loses_creation) {
            return fake_api::refusal(500, "InternalError");
        }
        (200, lease)
    }

    /// Notes that a candidate leads; true the first time.
    fn begin(&self) -> bool {
        !std::mem::replace(&mut self.0.lock().unwrap().has_led, true)
    }

    /// Another program, or a person, writes into the Lease.
    fn edit(&self, change: impl FnOnce(&mut Value)) {
        let mut state = self.0.lock().unwrap();
        state.version += 1;
        let version = json!(state.version.to_string());
        let lease = state.lease.get_or_insert_with(|| json!({"metadata": {"name": "work"}}));
        lease["metadata"]["resourceVersion"] = version;
        change(lease);
    }

    fn holder(&self) -> Option<String> {
        let state = self.0.lock().unwrap();
        state.lease.as_ref()?["spec"]["holderIdentity"]
            .as_str()
            .map(str::to_owned)
    }

    fn break_down(&self, is_down: bool) {
        self.0.lock().unwrap().is_down = is_down;
    }

    fn remove(&self) {
        self.0.lock().unwrap().lease = None;
    }
}

/// The current leader; panics if there are two at once.
#[derive(Clone, Default)]
struct Throne(Arc<Mutex<Option<String>>>);

struct Seat(Throne);

impl Throne {
    fn sit(&self, who: &str) -> Seat {
        let mut seated = self.0.lock().unwrap();
        assert_eq!(*seated, None, "two leaders at once");
        *seated = Some(who.to_owned());
        Seat(self.clone())
    }

    fn who(&self) -> Option<String> {
        self.0.lock().unwrap().clone()
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        *self.0.0.lock().unwrap() = None;
    }
}

fn run(server: &Server, throne: &Throne, identity: &'static str) -> (CancellationToken, tokio::task::JoinHandle<()>) {
    campaign(
        Election::new(server.client(), candidate(identity)),
        server,
        throne,
        identity,
    )
}

fn campaign(
    election: Election,
    server: &Server,
    throne: &Throne,
    identity: &'static str,
) -> (CancellationToken, tokio::task::JoinHandle<()>) {
    let shutdown = CancellationToken::new();
    let (throne, stop, server) = (throne.clone(), shutdown.clone(), server.clone());
    let task = tokio::spawn(async move {
        let lead = |token: CancellationToken| {
            let throne = throne.clone();
            async move {
                let _seat = throne.sit(identity);
                token.cancelled().await;
            }
        };
        election.run(stop, || std::future::ready(server.begin()), lead).await;
    });
    (shutdown, task)
}

/// Advances the paused clock until the condition holds; the deadline uses the same clock.
async fn until(seconds: u64, condition: impl Fn() -> bool) -> Duration {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_secs(seconds), "not within {seconds} s");
        tokio::time::advance(Duration::from_millis(50)).await;
        tokio::task::yield_now().await;
    }
    start.elapsed()
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_hands_over_at_once() {
    let (server, throne) = (Server::default(), Throne::default());
    let (stop_a, a) = run(&server, &throne, "a");
    until(5, || throne.who().as_deref() == Some("a")).await;
    let (stop_b, b) = run(&server, &throne, "b");
    stop_a.cancel();
    a.await.unwrap();
    assert_eq!(server.holder(), None, "released");
    until(4, || throne.who().as_deref() == Some("b")).await;
    stop_b.cancel();
    b.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_holder_that_cannot_renew_stops_and_campaigns_again() {
    let (server, throne) = (Server::default(), Throne::default());
    let (stop, task) = run(&server, &throne, "a");
    until(5, || throne.who().is_some()).await;
    server.break_down(true);
    let waited = until(12, || throne.who().is_none()).await;
    assert!(
        waited > Duration::from_secs(7),
        "{waited:?}: a short failure is not the end"
    );
    server.break_down(false);
    until(4, || throne.who().is_some()).await;
    stop.cancel();
    task.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_silent_holder_is_followed_and_never_joined() {
    let (server, throne) = (Server::default(), Throne::default());
    let (_stop_a, a) = run(&server, &throne, "a");
    until(5, || throne.who().is_some()).await;
    let (stop_b, b) = run(&server, &throne, "b");
    a.abort();
    until(20, || throne.who().as_deref() == Some("b")).await;
    stop_b.cancel();
    b.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn one_that_is_killed_and_begins_again_under_its_name_leads_at_once() {
    let (server, throne) = (Server::default(), Throne::default());
    let (_stop, killed) = run(&server, &throne, "a");
    until(5, || throne.who().is_some()).await;
    killed.abort();
    until(1, || throne.who().is_none()).await;
    let (stop, task) = run(&server, &throne, "a");
    until(1, || throne.who().as_deref() == Some("a")).await;
    stop.cancel();
    task.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_is_deleted_does_not_make_two_leaders() {
    let (server, throne) = (Server::default(), Throne::default());
    let (stop_a, a) = run(&server, &throne, "a");
    until(5, || throne.who().is_some()).await;
    let (stop_b, b) = run(&server, &throne, "b");
    until(5, || b.is_finished() || server.holder().as_deref() == Some("a")).await;
    // `b` must have seen the lease, and sees it again before its time is over.
    tokio::time::sleep(Duration::from_secs(5)).await;
    for _ in 0..4 {
        server.remove();
        until(5, || server.holder().as_deref() == Some("a")).await;
        tokio::time::sleep(Duration::from_millis(700)).await;
    }
    assert_eq!(throne.who().as_deref(), Some("a"));
    for (stop, task) in [(stop_b, b), (stop_a, a)] {
        stop.cancel();
        task.await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_candidate_knows_where_it_stands() {
    let server = Server::default();
    server.break_down(true);
    let election = Election::new(server.client(), candidate("a"));
    let (mut standing, stop) = (election.standing(), CancellationToken::new());
    let (shutdown, over) = (stop.clone(), CancellationToken::new());
    let lead = {
        let over = over.clone();
        move |_| over.clone().cancelled_owned()
    };
    let task = tokio::spawn(election.run(shutdown, || std::future::ready(true), lead));
    let failing = standing
        .wait_for(|now| *now != Standing::Unknown)
        .await
        .unwrap()
        .clone();
    let message = "the Lease work in namespace system cannot be read: InternalError".to_owned();
    assert_eq!(
        failing,
        Standing::Failing {
            obstacle: Obstacle::Refused,
            is_free: false,
            message
        }
    );
    server.break_down(false);
    standing.wait_for(|now| *now == Standing::Leading).await.unwrap();
    server.0.lock().unwrap().lease.as_mut().unwrap()["spec"]["holderIdentity"] = json!("b");
    let holder = "b".to_owned();
    let next = standing.wait_for(|now| *now != Standing::Leading && *now != Standing::Unknown);
    assert_eq!(*next.await.unwrap(), Standing::StandBy { holder });
    stop.cancel();
    task.await.unwrap();
}

#[test]
fn a_missing_right_is_told_from_a_failure() {
    let said = |code, said: &str| {
        let status = kube::core::Status::failure(said, "Reason").with_code(code);
        let error = kube::Error::Api(Box::new(status));
        Trouble::of(&candidate("a"), "renewed", &error)
    };
    for code in [403, 401] {
        let trouble = said(code, "said");
        assert_eq!(
            (trouble.obstacle, trouble.message.as_str()),
            (Obstacle::Forbidden, "said"),
            "{code}"
        );
    }
    let webhook = "admission webhook \"w\" denied the request: no";
    for (code, words) in [(409, "said"), (422, "said"), (500, "said"), (403, webhook)] {
        let Trouble { obstacle, message } = said(code, words);
        let expected = format!("the Lease work in namespace system cannot be renewed: {words}");
        assert_eq!((obstacle, message), (Obstacle::Refused, expected), "{code}");
    }
}

#[test]
fn the_log_has_each_obstacle_once_a_minute() {
    let (mut logged, begin) = (Logged::default(), Instant::now());
    let mut lines = 0;
    for second in (0..121).step_by(2) {
        for obstacle in [Obstacle::Refused, Obstacle::Unanswered] {
            lines += usize::from(logged.is_due(obstacle, begin + Duration::from_secs(second)));
        }
    }
    assert_eq!(lines, 6);
}

/// The timers of the runtime stand still while the machine is suspended: the work must not go on when it wakes up.
#[tokio::test(start_paused = true)]
async fn work_does_not_go_on_after_its_machine_was_suspended() {
    let server = Server::default();
    let suspended = Arc::new(AtomicU64::new(0));
    let (extra, begin) = (suspended.clone(), Instant::now());
    let mut election = Election::new(server.client(), candidate("a"));
    election.clock = Clock::new(move || begin.elapsed() + Duration::from_secs(extra.load(Ordering::SeqCst)));
    let done = Arc::new(AtomicU64::new(0));
    let (stop, count) = (CancellationToken::new(), done.clone());
    let lead = move |_| {
        let count = count.clone();
        async move {
            loop {
                count.fetch_add(1, Ordering::SeqCst);
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    };
    let task = tokio::spawn(election.run(stop.clone(), || std::future::ready(true), lead));
    until(5, || done.load(Ordering::SeqCst) > 40).await;
    suspended.store(9, Ordering::SeqCst);
    let before = done.load(Ordering::SeqCst);
    until(5, || done.load(Ordering::SeqCst) > before + 30).await;
    server.break_down(true);
    suspended.store(20, Ordering::SeqCst);
    let before = done.load(Ordering::SeqCst);
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(
        done.load(Ordering::SeqCst),
        before,
        "nothing is done by one that may have lost the lease"
    );
    server.break_down(false);
    until(5, || done.load(Ordering::SeqCst) > before).await;
    stop.cancel();
    task.await.unwrap();
}
