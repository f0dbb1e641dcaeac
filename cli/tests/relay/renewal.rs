//! Streams that live longer than the certificates of their connections, against a relay that cuts a connection when its
//! certificate ends: nothing is lost or doubled, and the user is told nothing.

use std::pin::Pin;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use futures::{Stream, StreamExt};
use remoteprocess_cli::output::{Output, Target};
use remoteprocess_client::attach::Writer;
use remoteprocess_client::exec::{Exec, Over};
use remoteprocess_client::pool::Shared;
use remoteprocess_client::sink::Progress;
use remoteprocess_client::stream::Local;
use remoteprocess_client::{Dial, Follower, Ledger, Want};
use remoteprocess_proto::v1::exit::Outcome;
use remoteprocess_proto::v1::output_frame::Frame;
use remoteprocess_proto::v1::relay_server::{Relay, RelayServer};
use remoteprocess_proto::v1::{self, Data, ExecOpen, Exit, OutputFrame, ProcessKey, Seal, StreamSeal};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tonic::service::Routes;
use tonic::{Request, Response, Status, Streaming};

use super::attach::{Desk, nobody_leaves, soon};
use super::exec::Container;
use super::fragile;
use super::world::{World, world_of};

/// How long certificates are valid. They are renewed after three fifths, and their ends have whole seconds.
const LIFETIME: Duration = Duration::from_secs(4);
/// The connections of a stream. When the third one opens, the certificate of the first one has ended.
const CONNECTIONS: usize = 3;
const TICK: Duration = Duration::from_millis(10);

/// Remembers each break that a user would be told.
#[derive(Clone, Default)]
struct Breaks(Arc<Mutex<Vec<String>>>);

impl Progress for Breaks {
    fn cut(&mut self, cause: String) {
        self.0.lock().unwrap().push(cause);
    }
}

/// Writes a byte each [`TICK`], and ends when streams were opened often enough.
#[derive(Clone)]
struct Clock {
    begin: Instant,
    enough: usize,
    openings: Arc<Mutex<Vec<u64>>>,
    total: Arc<OnceLock<u64>>,
}

impl Clock {
    fn new(enough: usize) -> Self {
        Self {
            begin: Instant::now(),
            enough,
            openings: Arc::default(),
            total: Arc::default(),
        }
    }

    fn openings(&self) -> usize {
        self.openings.lock().unwrap().len()
    }

    /// Waits until it is time for an offset, and returns its frame.
    async fn frame(&self, offset: u64) -> Frame {
        tokio::time::sleep_until(self.begin + TICK * u32::try_from(offset).unwrap()).await;
        if self.openings() >= self.enough {
            // No stream is ahead of the clock.
            let now = self.begin.elapsed().as_millis() / TICK.as_millis();
            self.total.get_or_init(|| u64::try_from(now).unwrap() + 1);
        }
        match self.total.get() {
            Some(&total) if total == offset => end(total),
            _ => Frame::Data(Data {
                stream: v1::Stream::Stdout.into(),
                offset,
                time_unix_nanos: 0,
                bytes: vec![byte(offset)].into(),
            }),
        }
    }
}

fn byte(offset: u64) -> u8 {
    (offset * 31 % 251) as u8
}

fn bytes(total: u64) -> Vec<u8> {
    (0..total).map(byte).collect()
}

fn end(total: u64) -> Frame {
    let seal = |bytes| {
        Some(StreamSeal {
            bytes,
            ..StreamSeal::default()
        })
    };
    Frame::Exit(Exit {
        outcome: Outcome::Code.into(),
        sealed: true,
        seal: Some(Seal {
            stdout: seal(total),
            stderr: seal(0),
            ..Seal::default()
        }),
        ..Exit::default()
    })
}

#[tonic::async_trait]
impl Relay for Clock {
    type WatchOutputStream = Pin<Box<dyn Stream<Item = Result<OutputFrame, Status>> + Send>>;

    async fn watch_output(
        &self,
        request: Request<v1::WatchOutputRequest>,
    ) -> Result<Response<Self::WatchOutputStream>, Status> {
        let from = request.into_inner().cursor.unwrap_or_default().stdout;
        self.openings.lock().unwrap().push(from);
        let clock = self.clone();
        let frames = futures::stream::unfold(Some(from), move |next| {
            let clock = clock.clone();
            async move {
                let offset = next?;
                let frame = clock.frame(offset).await;
                let next = matches!(frame, Frame::Data(_)).then_some(offset + 1);
                Some((Ok(OutputFrame { frame: Some(frame) }), next))
            }
        });
        Ok(Response::new(frames.boxed()))
    }

    type AttachStream = Pin<Box<dyn Stream<Item = Result<v1::AttachResponse, Status>> + Send>>;

    async fn attach(&self, _: Request<Streaming<v1::AttachRequest>>) -> Result<Response<Self::AttachStream>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn start(&self, _: Request<v1::StartRequest>) -> Result<Response<v1::StartResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn get_state(&self, _: Request<v1::GetStateRequest>) -> Result<Response<v1::GetStateResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn list(&self, _: Request<v1::ListRequest>) -> Result<Response<v1::ListResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn signal(&self, _: Request<v1::SignalRequest>) -> Result<Response<v1::SignalResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    type ExecStream = Pin<Box<dyn Stream<Item = Result<v1::ExecResponse, Status>> + Send>>;

    async fn exec(&self, _: Request<Streaming<v1::ExecRequest>>) -> Result<Response<Self::ExecStream>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn stop(&self, _: Request<v1::StopRequest>) -> Result<Response<v1::StopResponse>, Status> {
        Err(Status::unimplemented(""))
    }
}

async fn world(relay: impl Relay) -> World {
    world_of(Routes::new(RelayServer::new(relay)), LIFETIME).await
}

/// Types a byte each [`TICK`] until it is time for the end of the input. The second value holds what was typed.
fn type_slowly(is_over: impl Fn() -> bool + Send + Sync + 'static) -> (mpsc::Receiver<Local>, Arc<Mutex<Vec<u8>>>) {
    let (local, said) = mpsc::channel(1);
    let typed = Arc::<Mutex<Vec<u8>>>::default();
    let keyboard = typed.clone();
    tokio::spawn(async move {
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        for offset in (0..).take_while(|_| !is_over()) {
            ticks.tick().await;
            local.send(Local::Bytes(vec![byte(offset)].into())).await.unwrap();
            keyboard.lock().unwrap().push(byte(offset));
        }
        local.send(Local::End).await.unwrap();
        // The keyboard is still there.
        local.closed().await;
    });
    (said, typed)
}

/// A follower of everything, with what it writes and the breaks that it reports.
fn follower<D: Dial>(dial: D) -> (Follower<D, Output, Breaks>, fragile::Shared, Breaks) {
    let (out, breaks) = (fragile::Shared::default(), Breaks::default());
    let follower = Follower {
        dial,
        ledger: Ledger::new(Want {
            follow: true,
            ..Want::default()
        }),
        sink: output(&out),
        progress: breaks.clone(),
        unknown_until: Instant::now(),
    };
    (follower, out, breaks)
}

/// Output whose standard output is `out`.
fn output(out: &fragile::Shared) -> Output {
    Output::new(Target::plain(out.clone()), Target::plain(fragile::Shared::default()))
}

#[tokio::test]
async fn followers_on_one_connection_live_longer_than_their_certificate() {
    let clock = Clock::new(3 * CONNECTIONS);
    let world = world(clock.clone()).await;
    let shared = Shared::new(Arc::new(world.cluster.clone()));
    let follow = || async {
        let (mut follower, out, breaks) = follower(shared.clone());
        let exit = soon(follower.run()).await.unwrap().expect("the end");
        assert!(exit.sealed && *out.0.lock().unwrap() == bytes(*clock.total.get().unwrap()));
        assert_eq!(*breaks.0.lock().unwrap(), Vec::<String>::new());
    };
    tokio::join!(follow(), follow(), follow());
    // One certificate for all three streams each time.
    assert_eq!((clock.openings(), world.signed()), (3 * CONNECTIONS, CONNECTIONS));
}

#[tokio::test]
async fn a_writer_keeps_the_input_while_its_certificate_is_renewed() {
    let desk = Desk::default();
    let world = world(desk.clone()).await;
    let mut writer = Writer::new(world.relay(), ProcessKey::default(), false, false);
    let openings = desk.openings.clone();
    let (said, typed) = type_slowly(move || openings.lock().unwrap().len() >= CONNECTIONS);
    soon(writer.run(said, nobody_leaves())).await.unwrap();
    assert!(*desk.input.lock().unwrap() == *typed.lock().unwrap());
    assert!(!*desk.let_go.borrow(), "another writer could have taken the input");
    // Each connection is there before the one that it follows has ended.
    assert_eq!(*desk.beside.lock().unwrap(), [0, 1, 1]);
    let openings = desk.openings.lock().unwrap();
    assert!(openings[1..].iter().all(|open| open.resume));
    assert_eq!((openings.len(), world.signed()), (CONNECTIONS, CONNECTIONS));
}

#[tokio::test]
async fn a_session_lives_longer_than_its_certificate() {
    let container = Container::default();
    let world = world(container.clone()).await;
    let (out, breaks) = (fragile::Shared::default(), Breaks::default());
    let open = ExecOpen {
        command: vec!["cat".into()],
        stdin: true,
        ..ExecOpen::default()
    };
    let output = output(&out);
    let openings = container.openings.clone();
    let (said, typed) = type_slowly(move || openings.lock().unwrap().len() >= CONNECTIONS);
    let mut exec = Exec::new(world.relay(), open, output.clone(), breaks.clone());
    let over = soon(exec.run(said, nobody_leaves())).await.unwrap();
    output.flush().await.unwrap();
    assert!(matches!(over, Over::Exit(exit) if exit.value == 9));
    assert!(*out.0.lock().unwrap() == *typed.lock().unwrap());
    assert_eq!(*breaks.0.lock().unwrap(), Vec::<String>::new());
    let openings = container.openings.lock().unwrap();
    assert!(openings[1..].iter().all(|open| open.resume));
    assert_eq!((openings.len(), world.signed()), (CONNECTIONS, CONNECTIONS));
}

/// The API server is away when the renewal is due: the stream keeps its connection, and is renewed later.
#[tokio::test]
async fn a_renewal_that_fails_is_repeated_and_cuts_nothing() {
    let clock = Clock::new(2);
    let world = world_of(Routes::new(RelayServer::new(clock.clone())), LIFETIME * 2).await;
    let (mut follower, out, breaks) = follower(world.relay());
    let fake = world.fake.clone();
    let away = async {
        wait_until(|| clock.openings() == 1).await;
        fake.lock().unwrap().forbidden = Some("/");
        wait_until(|| fake.lock().unwrap().refused > 0).await;
        assert_eq!(clock.openings(), 1, "the connection stays");
        fake.lock().unwrap().forbidden = None;
    };
    let (followed, ()) = tokio::join!(soon(follower.run()), away);
    followed.unwrap().expect("the end");
    assert!(*out.0.lock().unwrap() == bytes(*clock.total.get().unwrap()));
    assert_eq!(*breaks.0.lock().unwrap(), Vec::<String>::new());
    assert_eq!((clock.openings(), world.signed()), (2, 2));
}

async fn wait_until(is_true: impl Fn() -> bool) {
    soon(async {
        while !is_true() {
            tokio::time::sleep(TICK).await;
        }
    })
    .await;
}
