//! LiveAttempts against an agent over real connections: whatever breaks, every reader gets every byte once, then the
//! end.

use std::future::Future;
use std::time::Duration;

use object_store::memory::InMemory;
use prost::Message;
use remoteprocess_api::OutputReason;
use remoteprocess_proto::v1::exit::{Outcome, Source};
use remoteprocess_proto::v1::{Gap, GapReason, OutputFrame, Phase, Reason, Stream};
use rstest::rstest;
use tokio::time::timeout;

use super::fake_agent::{FakeAgent, Program, TestDialer, byte, no_peers};
use super::*;
use crate::relay::archive::{READ_MEMORY, SEGMENT_BYTES};
use crate::relay::piece::{Framed, Piece, Placed, Wanted, data, gap};

mod desired;
mod outage;

/// Much longer than any step takes; only a hang lasts this long.
const DEADLINE: Duration = Duration::from_secs(30);
const BATCH: usize = 256 * 1024;

/// What was recorded, and whether the API server answers.
#[derive(Clone)]
struct Notes {
    /// The manifest and the tail.
    ended: watch::Sender<Option<(Manifest, Vec<u8>)>>,
    learned: watch::Sender<Vec<Fact>>,
    /// Facts whose write has begun.
    begun: watch::Sender<usize>,
    /// The write of a fact takes until this is false.
    is_slow: watch::Sender<bool>,
    api: watch::Sender<bool>,
    noted: Arc<Mutex<Vec<OutputCondition>>>,
}

impl Default for Notes {
    fn default() -> Self {
        Self {
            ended: watch::Sender::new(None),
            learned: watch::Sender::default(),
            begun: watch::Sender::default(),
            is_slow: watch::Sender::default(),
            api: watch::Sender::new(true),
            noted: Arc::default(),
        }
    }
}

impl Record for Notes {
    fn learned<'a>(&'a self, _: &'a Subject, fact: Fact) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            self.begun.send_modify(|begun| *begun += 1);
            self.is_slow.subscribe().wait_for(|is_slow| !is_slow).await.unwrap();
            self.learned.send_modify(|learned| learned.push(fact));
        })
    }

    fn noted<'a>(&'a self, _: &'a Subject, notice: &'a OutputCondition) -> BoxFuture<'a, ()> {
        self.noted.lock().unwrap().push(notice.clone());
        Box::pin(std::future::ready(()))
    }

    fn ended<'a>(&'a self, _: &'a Subject, manifest: &'a Manifest, tail: &'a [u8]) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            self.api.subscribe().wait_for(|is_there| *is_there).await.unwrap();
            self.ended.send_replace(Some((manifest.clone(), tail.to_vec())));
        })
    }
}

/// One life of a relay over an archive.
struct Relay {
    archive: Archive,
    attempts: LiveAttempts,
    shutdown: CancellationToken,
    notes: Notes,
}

impl Relay {
    fn new(archive: &Archive) -> Self {
        let (notes, shutdown) = (Notes::default(), CancellationToken::new());
        let context = Context {
            archive: archive.clone(),
            connect: Arc::new(TestDialer::default()),
            record: Box::new(notes.clone()),
            peers: no_peers(),
            memory: Arc::new(Budget::new(1 << 30)),
            shutdown: shutdown.clone(),
        };
        Self {
            archive: archive.clone(),
            attempts: LiveAttempts::new(Arc::new(context)),
            shutdown,
            notes,
        }
    }

    fn open(&self, agent: &FakeAgent) -> Arc<LiveAttempt> {
        self.attempts.open(subject(), agent.agent())
    }

    fn follower(&self, wanted: Wanted) -> Follower {
        let mut follower = Follower::new(self.archive.clone(), subject().key, wanted);
        follower.attach(self.attempts.get(&subject().key).map(|live| live.feed()));
        follower
    }

    async fn recorded(&self) -> (Manifest, Vec<u8>) {
        let mut ended = self.notes.ended.subscribe();
        let ended = soon(ended.wait_for(Option::is_some)).await.unwrap().clone();
        ended.unwrap()
    }
}

fn memory() -> Archive {
    Archive::new(Arc::new(InMemory::new()))
}

fn subject() -> Subject {
    Subject {
        namespace: "default".to_owned(),
        name: "hello".to_owned(),
        pod_uid: "pod-1".to_owned(),
        key: AttemptKey {
            uid: "0c1d".to_owned(),
            attempt: 1,
        },
    }
}

fn all() -> Wanted {
    Wanted {
        cursor: Cursor::default(),
        only: None,
    }
}

async fn soon<T>(what: impl Future<Output = T>) -> T {
    timeout(DEADLINE, what).await.expect("in time")
}

/// What a reader has received so far, checked byte by byte.
struct Got {
    at: Cursor,
    gaps: Vec<Gap>,
}

impl Got {
    fn new() -> Self {
        Self {
            at: Cursor::default(),
            gaps: Vec::new(),
        }
    }

    fn take(&mut self, frames: Vec<Framed>) {
        for Framed { placed, wire } in frames {
            let piece = Piece::from_frame(OutputFrame::decode(wire.slice(5..)).unwrap()).unwrap();
            assert_eq!(piece, placed.piece, "the message is the piece");
            let stream = piece.stream();
            assert_eq!(piece.from(), self.at.of(stream), "dense");
            for (index, found) in piece.bytes().iter().enumerate() {
                assert_eq!(*found, byte(stream, piece.from() + index as u64));
            }
            self.at.set(stream, piece.to());
            if let Piece::Gap(gap) = piece {
                self.gaps.push(gap);
            }
        }
    }

    /// Reads until the end, or until `enough` bytes.
    async fn read(&mut self, follower: &mut Follower, enough: u64) -> Option<Exit> {
        loop {
            match soon(follower.next(BATCH)).await.unwrap() {
                Next::Pieces(frames) => self.take(frames),
                Next::Wait => soon(follower.changed()).await,
                Next::End(exit) => return Some(*exit),
                other => panic!("{other:?}"),
            }
            if self.at.stdout + self.at.stderr >= enough {
                return None;
            }
        }
    }
}

/// About `megabytes` in chunks of 48 KiB, every fifth on stderr.
fn chunks(megabytes: usize) -> Vec<(bool, usize)> {
    (0..megabytes * 21).map(|index| (index % 5 == 0, 48 * 1024)).collect()
}

#[tokio::test]
async fn the_whole_life_of_an_attempt() {
    let program = Program::new(&chunks(12));
    let agent = FakeAgent::serve(&program).await;
    let relay = Relay::new(&memory());
    relay.open(&agent);
    let (mut follower, mut got) = (relay.follower(all()), Got::new());
    let exit = got.read(&mut follower, u64::MAX).await.unwrap();
    assert_eq!((exit.outcome(), exit.value, exit.sealed), (Outcome::Code, 7, true));
    assert_eq!((got.at, got.gaps.len()), (program.end(), 0));
    let (manifest, tail) = relay.recorded().await;
    assert_eq!(
        (manifest.end(), manifest.sealed, tail.len()),
        (program.end(), true, 4096)
    );
    let mut changes = relay.attempts.changes();
    while relay.attempts.get(&subject().key).is_some() {
        soon(changes.changed()).await.unwrap();
    }
    assert!(program.has_left(), "the agent was told that it may leave");
    assert_eq!(program.streams.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn a_stalled_reader_delays_no_other_and_misses_nothing() {
    let program = Program::new(&chunks(40));
    program.written.send_replace(21);
    let agent = FakeAgent::serve(&program).await;
    let relay = Relay::new(&memory());
    relay.open(&agent);
    let (mut stalled, mut got) = (relay.follower(all()), Got::new());
    assert!(got.read(&mut stalled, 100_000).await.is_none());
    stalled.park();
    program.written.send_replace(program.history.len());
    let (mut quick, mut all_got) = (relay.follower(all()), Got::new());
    assert!(all_got.read(&mut quick, u64::MAX).await.is_some());
    relay.recorded().await;
    assert!(got.read(&mut stalled, u64::MAX).await.is_some());
    assert_eq!((got.at, got.gaps.len()), (program.end(), 0));
}

/// Forty slow readers of one user once held all seats.
#[tokio::test]
async fn readers_of_the_archive_take_turns_user_by_user() {
    let program = Program::new(&chunks(6));
    let agent = FakeAgent::serve(&program).await;
    let relay = Relay::new(&memory());
    relay.open(&agent);
    relay.recorded().await;
    let read_archive = |user| Follower::new(relay.archive.for_user(user), subject().key, all());
    let mut sitting = Vec::new();
    loop {
        let (mut follower, mut got) = (read_archive("mallory"), Got::new());
        match timeout(Duration::from_millis(300), follower.next(BATCH)).await {
            Ok(Ok(Next::Pieces(frames))) => got.take(frames),
            Ok(other) => panic!("{other:?}"),
            Err(_) => break,
        }
        sitting.push((follower, got));
    }
    assert!(sitting.len() * SEGMENT_BYTES <= READ_MEMORY, "{}", sitting.len());
    for _ in 0..30 {
        let mut waiting = read_archive("mallory");
        tokio::spawn(async move {
            assert!(matches!(waiting.next(BATCH).await, Ok(Next::Pieces(_))));
        });
    }
    tokio::task::yield_now().await;
    let mut late = read_archive("alice");
    let first = late.next(BATCH);
    let mut first = std::pin::pin!(first);
    assert!(timeout(Duration::from_millis(50), &mut first).await.is_err());
    // A reader that stands still makes room, and continues where it was.
    let mut parked = sitting.split_off(sitting.len() - 4);
    parked.iter_mut().for_each(|(follower, _)| follower.park());
    assert!(matches!(soon(first).await, Ok(Next::Pieces(_))));
    drop(sitting);
    for (mut follower, mut got) in parked {
        while got.at != program.end() {
            match soon(follower.next(BATCH)).await.unwrap() {
                Next::Pieces(frames) => got.take(frames),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(got.gaps.len(), 0);
    }
}

#[tokio::test]
async fn a_reader_that_falls_behind_again_and_again_gets_everything_from_archive_and_ring() {
    let program = Program::new(&chunks(30));
    let agent = FakeAgent::serve(&program).await;
    let relay = Relay::new(&memory());
    relay.open(&agent);
    let (mut slow, mut got) = (relay.follower(all()), Got::new());
    while got.read(&mut slow, got.at.stdout + got.at.stderr + 1).await.is_none() {
        // The upstream continues in the meantime, faster than this reader.
        for _ in 0..30 {
            tokio::task::yield_now().await;
        }
    }
    assert_eq!((got.at, got.gaps.len()), (program.end(), 0));
}

#[rstest]
#[case(1)]
#[case(7)]
#[case(100)]
#[tokio::test]
async fn a_line_that_breaks_again_and_again_costs_nothing_but_time(#[case] frames: usize) {
    let program = Program::new(&[(false, 1000), (true, 1), (false, 65_536)].repeat(if frames == 1 { 3 } else { 60 }));
    *program.cut_after.lock().unwrap() = Some(frames);
    let agent = FakeAgent::serve(&program).await;
    let relay = Relay::new(&memory());
    relay.open(&agent);
    let (mut follower, mut got) = (relay.follower(all()), Got::new());
    let exit = got.read(&mut follower, u64::MAX).await.unwrap();
    assert!(exit.sealed);
    assert_eq!((got.at, got.gaps.len()), (program.end(), 0));
}

#[tokio::test]
async fn an_agent_that_comes_back_elsewhere_is_found_by_its_new_start() {
    let program = Program::new(&chunks(4));
    program.written.send_replace(40);
    let first = FakeAgent::serve(&program).await;
    let relay = Relay::new(&memory());
    relay.open(&first);
    let (mut follower, mut got) = (relay.follower(all()), Got::new());
    assert!(got.read(&mut follower, 1_000_000).await.is_none());
    drop(first);
    let second = FakeAgent::serve(&program).await;
    relay.open(&second);
    program.written.send_replace(program.history.len());
    assert!(got.read(&mut follower, u64::MAX).await.unwrap().sealed);
    assert_eq!((got.at, got.gaps.len()), (program.end(), 0));
}

#[tokio::test]
async fn the_next_relay_continues_from_the_archive() {
    let archive = memory();
    let program = Program::new(&chunks(20));
    program.written.send_replace(250);
    let agent = FakeAgent::serve(&program).await;
    let first = Relay::new(&archive);
    first.open(&agent);
    let (mut follower, mut got) = (first.follower(all()), Got::new());
    assert!(got.read(&mut follower, 10_000_000).await.is_none());
    first.shutdown.cancel();
    soon(first.attempts.drained()).await;
    let saved = *program.streams.lock().unwrap().last().unwrap();
    assert_eq!(saved, Cursor::default());

    program.written.send_replace(program.history.len());
    let second = Relay::new(&archive);
    second.open(&agent);
    let resumed = Wanted {
        cursor: got.at,
        only: None,
    };
    let mut follower = second.follower(resumed);
    assert!(got.read(&mut follower, u64::MAX).await.unwrap().sealed);
    assert_eq!((got.at, got.gaps.len()), (program.end(), 0));
    let saved = *program.streams.lock().unwrap().last().unwrap();
    assert!(saved.stdout > 0, "the second relay asked only for what was missing");
    let (mut late, mut again) = (second.follower(all()), Got::new());
    assert!(again.read(&mut late, u64::MAX).await.is_some());
    assert_eq!(again.at, program.end());
}

#[tokio::test]
async fn an_api_server_that_is_away_delays_the_record_and_nothing_else() {
    let program = Program::new(&chunks(1));
    let agent = FakeAgent::serve(&program).await;
    let relay = Relay::new(&memory());
    relay.notes.api.send_replace(false);
    relay.open(&agent);
    let (mut follower, mut got) = (relay.follower(all()), Got::new());
    assert!(got.read(&mut follower, u64::MAX).await.unwrap().sealed);
    assert!(!program.has_left(), "the agent stays until its end is recorded");
    relay.notes.api.send_replace(true);
    relay.recorded().await;
}

#[tokio::test]
async fn the_start_is_recorded_with_the_agents_time() {
    let program = Program::new(&chunks(1));
    program.written.send_replace(1);
    let agent = FakeAgent::serve(&program).await;
    let relay = Relay::new(&memory());
    relay.open(&agent);
    let mut learned = relay.notes.learned.subscribe();
    let learned = soon(learned.wait_for(|learned| !learned.is_empty()))
        .await
        .unwrap()
        .clone();
    let started = Fact::Started {
        at_unix_nanos: 42,
        run_deadline: None,
    };
    assert_eq!(learned, [started]);
}

#[tokio::test]
async fn a_start_that_is_being_written_is_not_cut_off_by_the_end() {
    let program = Program::new(&[(false, 100), (false, 100)]);
    program.written.send_replace(1);
    let agent = FakeAgent::serve(&program).await;
    let relay = Relay::new(&memory());
    relay.notes.is_slow.send_replace(true);
    let live = relay.open(&agent);
    soon(relay.notes.begun.subscribe().wait_for(|begun| *begun == 1))
        .await
        .unwrap();
    program.written.send_replace(2);
    let mut follower = relay.follower(all());
    Got::new().read(&mut follower, u64::MAX).await.unwrap();
    assert!(live.exit().is_some() && relay.notes.ended.borrow().is_none());
    relay.notes.is_slow.send_replace(false);
    relay.recorded().await;
    assert_eq!(relay.notes.learned.borrow().len(), 1, "first the start, then the end");
}

#[tokio::test]
async fn a_stop_of_the_specification_reaches_the_agent_once() {
    let program = Program::new(&chunks(1));
    program.written.send_replace(1);
    let agent = FakeAgent::serve(&program).await;
    let relay = Relay::new(&memory());
    let live = relay.open(&agent);
    let order = |requested_by: &str| StopOrder {
        requested_by: requested_by.to_owned(),
        message: "for maintenance".to_owned(),
    };
    live.update_desired(Desired {
        stop: Some(order("spec.desiredState")),
        ..Desired::default()
    });
    live.update_desired(Desired {
        stop: Some(order("deletion")),
        ..Desired::default()
    });
    soon(async {
        while program.stops.lock().unwrap().is_empty() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    program.written.send_replace(program.history.len());
    relay.recorded().await;
    let stops = program.stops.lock().unwrap().clone();
    assert_eq!(stops.len(), 1);
    assert_eq!(
        (stops[0].requested_by.as_str(), stops[0].message.as_str()),
        ("spec.desiredState", "for maintenance")
    );
}

#[tokio::test]
async fn an_attempt_whose_agent_is_gone_ends_with_what_the_status_says_and_names_the_gap() {
    let program = Program::new(&chunks(1));
    program.written.send_replace(10);
    let agent = FakeAgent::serve(&program).await;
    let relay = Relay::new(&memory());
    let live = relay.open(&agent);
    let (mut follower, mut got) = (relay.follower(all()), Got::new());
    assert!(got.read(&mut follower, 10 * 48 * 1024).await.is_none());
    drop(agent);
    tokio::time::pause();
    live.update_desired(Desired {
        end: Some(Exit {
            outcome: Outcome::Code.into(),
            value: 137,
            source: Source::Kubelet.into(),
            ..Exit::default()
        }),
        ..Desired::default()
    });
    let exit = got.read(&mut follower, u64::MAX).await.unwrap();
    assert_eq!((exit.value, exit.source(), exit.sealed), (137, Source::Kubelet, false));
    let lost: Vec<_> = got
        .gaps
        .iter()
        .map(|gap| (gap.stream(), gap.to, gap.reason()))
        .collect();
    assert_eq!(
        lost,
        vec![
            (Stream::Stdout, None, GapReason::NeverSealed),
            (Stream::Stderr, None, GapReason::NeverSealed)
        ]
    );
    let (manifest, _) = relay.recorded().await;
    assert_eq!((manifest.sealed, manifest.gaps.len()), (false, 2));
}

/// A gap without an end has no length, so the position of a reader does not change by it.
#[tokio::test]
async fn the_archive_of_an_attempt_that_was_never_sealed_is_read_to_its_end() {
    let archive = memory();
    let mut writer = archive.writer(subject()).await.unwrap();
    let mut start = Cursor::default();
    let bytes = Bytes::from_static(b"ready\n");
    let pieces = [
        data(Stream::Stdout, 0, 0, bytes),
        gap(Stream::Stdout, 6, None, GapReason::NeverSealed),
        gap(Stream::Stderr, 0, None, GapReason::NeverSealed),
    ];
    for piece in pieces {
        let placed = Placed { start, piece };
        writer.append(&placed);
        start = placed.end();
    }
    writer.seal(&Exit::default()).await.unwrap();
    for takes in [usize::MAX, 1] {
        let mut follower = Follower::new(archive.clone(), subject().key, all());
        let (mut bytes, mut gaps) = (0, Vec::new());
        while let Next::Pieces(found) = soon(follower.next(takes)).await.unwrap() {
            for Framed { placed, .. } in found {
                bytes += placed.piece.bytes().len();
                gaps.extend(placed.piece.is_endless().then(|| placed.piece.stream()));
            }
            assert!(gaps.len() <= 2, "{gaps:?}");
            // What a reader holds may be freed at any time, and is read again.
            follower.park();
        }
        gaps.sort();
        assert_eq!(
            (bytes, gaps),
            (6, vec![Stream::Stdout, Stream::Stderr]),
            "in parts of {takes}"
        );
    }
}

#[tokio::test]
async fn counted_bytes_that_were_never_sent_are_a_gap() {
    let mut program = Program::new(&[(false, 100)]);
    let seal = Arc::get_mut(&mut program).unwrap().exit.seal.as_mut().unwrap();
    seal.stdout.as_mut().unwrap().bytes = 150;
    let agent = FakeAgent::serve(&program).await;
    let relay = Relay::new(&memory());
    relay.open(&agent);
    let (mut follower, mut got) = (relay.follower(all()), Got::new());
    let exit = got.read(&mut follower, u64::MAX).await.unwrap();
    assert!(!exit.sealed);
    assert_eq!((got.gaps[0].from, got.gaps[0].to), (100, Some(150)));
}

#[tokio::test]
async fn a_home_that_was_replaced_gives_way() {
    let program = Program::new(&chunks(1));
    *program.superseded.lock().unwrap() = true;
    let agent = FakeAgent::serve(&program).await;
    let relay = Relay::new(&memory());
    relay.open(&agent);
    let mut follower = relay.follower(all());
    loop {
        match soon(follower.next(BATCH)).await.unwrap() {
            Next::Wait => soon(follower.changed()).await,
            Next::Closed => break,
            other => panic!("{other:?}"),
        }
    }
    assert!(relay.notes.ended.borrow().is_none());
}

#[tokio::test]
async fn a_home_whose_agent_ended_elsewhere_gives_way_once_that_is_recorded() {
    let archive = memory();
    let (stale, home) = (Relay::new(&archive), Relay::new(&archive));
    let program = Program::new(&[(false, 1000), (false, 1000)]);
    program.written.send_replace(1);
    let agent = FakeAgent::serve(&program).await;
    let live = stale.open(&agent);
    let mut follower = stale.follower(all());
    while live.received().stdout < 1000 {
        soon(follower.changed()).await;
    }
    drop(agent);
    let is_cut = async {
        while live.is_connected() {
            tokio::task::yield_now().await;
        }
    };
    soon(is_cut).await;
    program.written.send_replace(2);
    let agent = FakeAgent::serve(&program).await;
    home.open(&agent);
    assert!(home.recorded().await.0.sealed);
    live.update_desired(Desired {
        is_recorded: true,
        ..Desired::default()
    });
    loop {
        match soon(follower.next(BATCH)).await.unwrap() {
            Next::Pieces(_) => {}
            Next::Wait => soon(follower.changed()).await,
            Next::Closed => break,
            other => panic!("{other:?}"),
        }
    }
    assert!(stale.notes.ended.borrow().is_none());
    let manifest = archive.manifest(&subject().key).await.unwrap().unwrap();
    assert!(manifest.sealed, "{manifest:?}");
}

#[tokio::test]
async fn the_last_lines_of_a_live_stream_begin_in_the_ring() {
    let program = Program::new(&[(false, 10_000), (true, 10_000)]);
    program.written.send_replace(1);
    let agent = FakeAgent::serve(&program).await;
    let relay = Relay::new(&memory());
    relay.open(&agent);
    let (mut follower, mut got) = (relay.follower(all()), Got::new());
    assert!(got.read(&mut follower, 10_000).await.is_none());
    let mut tail = relay.follower(all());
    tail.begin_at_tail(1).await.unwrap();
    tail.limit_to_now();
    let Next::Pieces(frames) = tail.next(BATCH).await.unwrap() else {
        panic!()
    };
    let from = frames[0].placed.piece.from();
    assert!(from > 9_000, "the last line only");
    assert_eq!(byte(Stream::Stdout, from - 1), b'\n');
    assert_eq!(tail.next(BATCH).await.unwrap(), Next::Limit);
}

#[tokio::test]
async fn logs_right_after_run_tell_the_end_before_the_status_does() {
    let program = Program::new(&chunks(1));
    program.written.send_replace(program.history.len());
    let agent = FakeAgent::serve(&program).await;
    let relay = Relay::new(&memory());
    // The end is reported while the live attempt still writes the record.
    relay.notes.api.send_replace(false);
    relay.open(&agent);
    let end = async |mut reader: Follower| loop {
        match soon(reader.next(BATCH)).await.unwrap() {
            Next::Pieces(_) => {}
            Next::Wait => soon(reader.changed()).await,
            other => return other,
        }
    };
    let followed = end(relay.follower(all())).await;
    assert!(matches!(followed, Next::End(_)), "{followed:?}");
    let mut reader = relay.follower(all());
    reader.limit_to_now();
    assert_eq!(end(reader).await, followed);
}

#[tokio::test]
async fn a_spool_that_stays_full_becomes_a_condition_and_its_end_too() {
    let program = Program::new(&chunks(1));
    program.written.send_replace(1);
    let agent = FakeAgent::serve(&program).await;
    let relay = Relay::new(&memory());
    let live = relay.open(&agent);
    let (mut follower, mut got) = (relay.follower(all()), Got::new());
    assert!(got.read(&mut follower, 1).await.is_none());
    program.blocked.send_replace(true);
    soon(live.observed.subscribe().wait_for(|now| now.blocked.is_some()))
        .await
        .unwrap();
    tokio::time::pause();
    let told = || {
        let noted = relay.notes.noted.lock().unwrap().clone();
        // On a slow machine the spool may not have been full for a while first.
        let told = noted.into_iter().filter(|notice| notice.kind == BLOCKED);
        told.skip_while(|notice| !notice.is_true).collect::<Vec<_>>()
    };
    let noted = async |count| {
        while told().len() < count {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    soon(noted(1)).await;
    tokio::time::resume();
    program.blocked.send_replace(false);
    soon(live.observed.subscribe().wait_for(|now| now.blocked.is_none()))
        .await
        .unwrap();
    tokio::time::pause();
    soon(noted(2)).await;
    tokio::time::resume();
    let told = told();
    assert_eq!((told[0].is_true, told[0].reason), (true, OutputReason::SpoolFull));
    assert!(told[0].message.contains("4096 bytes"), "{}", told[0].message);
    assert_eq!((told[1].is_true, told[1].reason), (false, OutputReason::Resolved));
    program.written.send_replace(program.history.len());
    relay.recorded().await;
}

const BLOCKED: remoteprocess_api::ConditionType = remoteprocess_api::ConditionType::OutputBlocked;

/// A pod that a namespace editor made, with the token of an agent.
#[tokio::test]
async fn an_agent_that_sends_nonsense_is_named_and_what_was_accepted_stays() {
    let mut program = Program::new(&chunks(1));
    let end = program.end();
    let piece = gap(Stream::Stdout, end.stdout, Some(u64::MAX), GapReason::SpoolFull);
    let nonsense = Placed { start: end, piece };
    Arc::get_mut(&mut program).unwrap().history.push(nonsense);
    program.written.send_replace(program.history.len());
    let agent = FakeAgent::serve(&program).await;
    let relay = Relay::new(&memory());
    let live = relay.open(&agent);
    let mut observed = live.observed.subscribe();
    let refused = soon(observed.wait_for(|now| now.refused.is_some()))
        .await
        .unwrap()
        .refused;
    assert_eq!(refused, Some("an offset that no stream reaches"));
    let (mut follower, mut got) = (relay.follower(all()), Got::new());
    assert!(got.read(&mut follower, end.stdout + end.stderr).await.is_none());
    assert_eq!((live.received(), got.gaps.len()), (end, 0));
}
