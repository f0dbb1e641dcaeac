//! The writer against a relay of the test whose connections break: every byte once, in order, and the end.

use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::{Stream, StreamExt};
use remoteprocess_client::attach::Writer;
use remoteprocess_client::stream::{Error, Local};
use remoteprocess_proto::v1::attach_request::Request as Asked;
use remoteprocess_proto::v1::relay_server::Relay;
use remoteprocess_proto::v1::{self, AttachOpen, AttachRequest, AttachResponse, ProcessKey, WindowSize};
use tokio::sync::{mpsc, watch};
use tonic::{Code, Request, Response, Status, Streaming};

use super::fragile::{self, GrowingDial};

/// A relay that takes input as an agent does.
#[derive(Clone, Default)]
pub(crate) struct Desk {
    pub(crate) input: Arc<Mutex<Vec<u8>>>,
    is_over: Arc<Mutex<bool>>,
    pub(crate) openings: Arc<Mutex<Vec<AttachOpen>>>,
    /// How many streams were there when each one opened.
    pub(crate) beside: Arc<Mutex<Vec<usize>>>,
    /// The streams that are there.
    streams: Arc<Mutex<usize>>,
    windows: Arc<Mutex<Vec<(u32, u32)>>>,
    /// Only each message with this interval is answered: a connection that breaks in between leaves the writer in
    /// doubt.
    answer_each: usize,
    /// Answers to the first streams instead.
    refusals: Arc<Mutex<Vec<Status>>>,
    /// After this many bytes of input there is no reader anymore, and it is not known how far the input has come.
    closes_after: Option<usize>,
    /// A message after this many bytes of input ends the stream with this status.
    ends_with: Option<(usize, Status)>,
    /// Set when the client ended its newest stream of requests before the end of the input.
    pub(crate) let_go: watch::Sender<bool>,
}

impl Desk {
    /// Handles a message; returns the answer if one is due.
    fn take(&self, asked: Asked, count: usize) -> Result<Option<AttachResponse>, Status> {
        let mut input = self.input.lock().unwrap();
        match asked {
            Asked::Open(open) => self.openings.lock().unwrap().push(open),
            Asked::Input(piece) => {
                let known = input.len() as u64;
                if piece.offset > known {
                    return Err(Status::out_of_range("a hole"));
                }
                let skipped = usize::try_from(known - piece.offset).unwrap().min(piece.bytes.len());
                input.extend_from_slice(&piece.bytes[skipped..]);
            }
            Asked::End(end) => *self.is_over.lock().unwrap() = end.offset == input.len() as u64,
            Asked::Resize(WindowSize { rows, columns }) => self.windows.lock().unwrap().push((rows, columns)),
        }
        if let Some((_, status)) = self.ends_with.as_ref().filter(|(after, _)| input.len() >= *after) {
            return Err(status.clone());
        }
        if self.closes_after.is_some_and(|after| input.len() >= after) {
            let (accepted, is_over) = (0, true);
            return Ok(Some(AttachResponse { accepted, is_over }));
        }
        let is_over = *self.is_over.lock().unwrap();
        let is_due = count == 0 || is_over || count.is_multiple_of(self.answer_each.max(1));
        Ok(is_due.then_some(AttachResponse {
            accepted: input.len() as u64,
            is_over,
        }))
    }

    async fn serve(
        &self,
        mut requests: Streaming<AttachRequest>,
        answers: mpsc::Sender<Result<AttachResponse, Status>>,
    ) {
        let number = self.openings.lock().unwrap().len() + 1;
        let mut count = 0;
        loop {
            match requests.message().await {
                Ok(Some(request)) => {
                    let answer = self.take(request.request.unwrap(), count);
                    count += 1;
                    if let Some(answer) = answer.transpose()
                        && answers.send(answer).await.is_err()
                    {
                        return;
                    }
                }
                Ok(None) => {
                    let is_newest = self.openings.lock().unwrap().len() == number;
                    if is_newest && !*self.is_over.lock().unwrap() {
                        self.let_go.send_replace(true);
                    }
                    return;
                }
                Err(_) => return,
            }
        }
    }
}

#[tonic::async_trait]
impl Relay for Desk {
    type AttachStream = Pin<Box<dyn Stream<Item = Result<AttachResponse, Status>> + Send>>;

    async fn attach(&self, request: Request<Streaming<AttachRequest>>) -> Result<Response<Self::AttachStream>, Status> {
        if let Some(refusal) = self.refusals.lock().unwrap().pop() {
            return Err(refusal);
        }
        let desk = self.clone();
        let (sender, answers) = mpsc::channel(64);
        tokio::spawn(async move {
            let beside = *desk.streams.lock().unwrap();
            desk.beside.lock().unwrap().push(beside);
            *desk.streams.lock().unwrap() += 1;
            desk.serve(request.into_inner(), sender).await;
            *desk.streams.lock().unwrap() -= 1;
        });
        Ok(Response::new(Box::pin(
            tokio_stream::wrappers::ReceiverStream::new(answers).boxed(),
        )))
    }

    type WatchOutputStream = Pin<Box<dyn Stream<Item = Result<v1::OutputFrame, Status>> + Send>>;

    async fn watch_output(
        &self,
        _: Request<v1::WatchOutputRequest>,
    ) -> Result<Response<Self::WatchOutputStream>, Status> {
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

struct Bench {
    writer: Writer<GrowingDial>,
    dials: Arc<Mutex<usize>>,
    serving: tokio::task::JoinHandle<Result<(), tonic::transport::Error>>,
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn bench(desk: &Desk, next_cut: Option<usize>) -> Bench {
    let (address, serving) = fragile::serve(desk.clone()).await;
    let dials: Arc<Mutex<usize>> = Arc::default();
    let dial = GrowingDial {
        address,
        next_cut,
        dials: dials.clone(),
        is_cut_both_ways: false,
    };
    Bench {
        writer: Writer::new(dial, ProcessKey::default(), false, false),
        dials,
        serving,
    }
}

pub(crate) async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), what)
        .await
        .expect("in time")
}

/// Sends all of the input and its end.
pub(crate) fn speak(input: Vec<u8>) -> mpsc::Receiver<Local> {
    let (local, said) = mpsc::channel(1);
    tokio::spawn(async move {
        for part in input.chunks(7001) {
            let _ = local.send(Local::Bytes(part.to_vec().into())).await;
        }
        let _ = local.send(Local::End).await;
        // Nothing follows, but this side stays open.
        local.closed().await;
    });
    said
}

pub(crate) fn nobody_leaves() -> watch::Receiver<bool> {
    let (leaving, left) = watch::channel(false);
    // It lives as long as the test.
    std::mem::forget(leaving);
    left
}

#[tokio::test]
async fn a_megabyte_arrives_once_with_its_end_over_any_number_of_cuts() {
    let input: Vec<u8> = (0..1 << 20).map(|at: usize| (at * 31 % 251) as u8).collect();
    for (cut, answer_each) in [(None, 1), (Some(20_000), 1), (Some(50_000), 3)] {
        let desk = Desk {
            answer_each,
            ..Desk::default()
        };
        let mut bench = bench(&desk, cut).await;
        soon(bench.writer.run(speak(input.clone()), nobody_leaves()))
            .await
            .unwrap();
        assert!(*desk.input.lock().unwrap() == input, "{cut:?}");
        assert!(*desk.is_over.lock().unwrap());
        let dials = *bench.dials.lock().unwrap();
        assert!(dials > 5 || cut.is_none(), "{dials} connections");
        let openings = desk.openings.lock().unwrap();
        assert!(openings.iter().all(|open| open.session == openings[0].session));
        assert!(!openings[0].resume && openings.last().unwrap().resume == (dials > 1));
    }
}

#[tokio::test]
async fn one_that_waits_for_the_process_tries_again_and_one_that_is_refused_says_why() {
    let desk = Desk::default();
    let held = Status::resource_exhausted("bob is writing into the process");
    // The last one first.
    *desk.refusals.lock().unwrap() = vec![held, Status::unavailable("not started"), Status::not_found("new")];
    let mut bench = bench(&desk, None).await;
    let error = soon(bench.writer.run(speak(vec![1]), nobody_leaves()))
        .await
        .unwrap_err();
    assert_eq!(error.to_string(), "bob is writing into the process");
    assert_eq!(*bench.dials.lock().unwrap(), 3);
}

#[tokio::test]
async fn a_writer_that_was_taken_over_stops() {
    let desk = Desk {
        ends_with: Some((10_000, Status::aborted("bob has taken over the input of the process"))),
        ..Desk::default()
    };
    let mut bench = bench(&desk, None).await;
    let error = soon(bench.writer.run(speak(vec![1; 100_000]), nobody_leaves()))
        .await
        .unwrap_err();
    assert!(
        matches!(&error, Error::Relay(status) if status.code() == Code::Aborted),
        "{error}"
    );
    assert_eq!(*bench.dials.lock().unwrap(), 1);
}

#[tokio::test]
async fn a_program_that_closes_its_input_is_no_failure_of_the_writer() {
    let desk = Desk {
        closes_after: Some(10_000),
        ..Desk::default()
    };
    let mut bench = bench(&desk, None).await;
    soon(bench.writer.run(speak(vec![1; 1_000_000]), nobody_leaves()))
        .await
        .unwrap();
    assert_eq!(*bench.dials.lock().unwrap(), 1);
}

#[tokio::test]
async fn a_relay_that_knows_other_bytes_is_not_believed() {
    let desk = Desk::default();
    let input = desk.input.clone();
    let mut bench = bench(&desk, Some(60_000)).await;
    let (local, said) = mpsc::channel(1);
    let forging = tokio::spawn(async move {
        while local.send(Local::Bytes(vec![1; 4096].into())).await.is_ok() {
            if input.lock().unwrap().len() > 40_000 {
                input.lock().unwrap().clear();
            }
        }
    });
    let error = soon(bench.writer.run(said, nobody_leaves())).await.unwrap_err();
    assert!(matches!(error, Error::Inconsistent { .. } | Error::Relay(_)), "{error}");
    forging.abort();
}

#[tokio::test]
async fn a_leaving_writer_lets_go_and_the_window_is_sent_first() {
    let desk = Desk::default();
    let mut bench = bench(&desk, None).await;
    bench.writer.resize(WindowSize { rows: 30, columns: 90 });
    let (local, said) = mpsc::channel(4);
    let (leaving, left) = watch::channel(false);
    let next = WindowSize { rows: 31, columns: 91 };
    local.send(Local::Resize(next)).await.unwrap();
    local.send(Local::Bytes("x".into())).await.unwrap();
    let input = desk.input.clone();
    let looking = tokio::spawn(async move {
        let mut pause = tokio::time::interval(Duration::from_millis(5));
        while input.lock().unwrap().is_empty() {
            pause.tick().await;
        }
        leaving.send_replace(true);
        // The keyboard is still there.
        local.closed().await;
    });
    soon(bench.writer.run(said, left)).await.unwrap();
    soon(desk.let_go.subscribe().wait_for(|has| *has)).await.unwrap();
    assert_eq!(*desk.windows.lock().unwrap(), [(30, 90), (31, 91)]);
    looking.abort();
}
