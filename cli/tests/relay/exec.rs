//! Another command over connections that break: started once, every byte in both directions once, and its own exit
//! code.

use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::Stream;
use remoteprocess_cli::output::{Output, Target};
use remoteprocess_cli::progress::Messages;
use remoteprocess_client::exec::{Exec, Over};
use remoteprocess_client::stream::{Error, Local};
use remoteprocess_proto::v1::exec_request::Request as Asked;
use remoteprocess_proto::v1::exec_response::Response as Said;
use remoteprocess_proto::v1::exit::Outcome;
use remoteprocess_proto::v1::relay_server::Relay;
use remoteprocess_proto::v1::{
    self, AttachRequest, AttachResponse, Data, ExecOpen, ExecRequest, ExecResponse, Exit, Stream as WireStream,
};
use tokio::sync::{mpsc, watch};
use tonic::{Request, Response, Status, Streaming};

use super::attach::{nobody_leaves, soon, speak};
use super::fragile::{self, GrowingDial, Shared};

/// A relay before an agent that runs `cat`, which exits with 9.
#[derive(Clone, Default)]
pub(crate) struct Container {
    pub(crate) input: Arc<Mutex<Vec<u8>>>,
    has_ended: Arc<Mutex<bool>>,
    pub(crate) openings: Arc<Mutex<Vec<ExecOpen>>>,
    /// After this many bytes the command closes its input, and then ends as before.
    closes_after: Option<usize>,
    /// The answer to a client that opens it: from the second time on, or always.
    refusal: Option<(bool, Status)>,
    /// Output begins this many bytes after where it should.
    misplaced: u64,
    /// Set when a client hung up.
    pub(crate) let_go: watch::Sender<bool>,
}

impl Container {
    /// Handles a message.
    fn take(&self, asked: Asked) {
        match asked {
            Asked::Open(open) => self.openings.lock().unwrap().push(open),
            Asked::Input(piece) => {
                let mut input = self.input.lock().unwrap();
                if self.closes_after.is_some_and(|after| input.len() >= after) {
                    *self.has_ended.lock().unwrap() = true;
                    return;
                }
                let known = input.len() as u64;
                assert!(piece.offset <= known, "a hole");
                let skipped = usize::try_from(known - piece.offset).unwrap().min(piece.bytes.len());
                input.extend_from_slice(&piece.bytes[skipped..]);
            }
            Asked::End(end) => *self.has_ended.lock().unwrap() = end.offset == self.input.lock().unwrap().len() as u64,
            Asked::HangUp(_) => drop(self.let_go.send_replace(true)),
            Asked::Resize(_) | Asked::Received(_) => {}
        }
    }

    /// The messages for a client that has received this much.
    fn says(&self, sent: &mut usize) -> Vec<Said> {
        let input = self.input.lock().unwrap();
        let is_over = self.closes_after.is_some_and(|after| input.len() >= after);
        // Without a reader it is not known how far the input has come.
        let accepted = if is_over { 0 } else { input.len() as u64 };
        let mut said = vec![Said::Input(AttachResponse { accepted, is_over })];
        for bytes in input[*sent..].chunks(3000) {
            said.push(Said::Data(Data {
                stream: WireStream::Stdout.into(),
                offset: *sent as u64 + self.misplaced,
                time_unix_nanos: 0,
                bytes: bytes.to_vec().into(),
            }));
            *sent += bytes.len();
        }
        if *self.has_ended.lock().unwrap() {
            said.push(Said::Exit(Exit {
                outcome: Outcome::Code.into(),
                value: 9,
                ..Exit::default()
            }));
        }
        said
    }

    async fn serve(self, mut requests: Streaming<ExecRequest>, answers: mpsc::Sender<Result<ExecResponse, Status>>) {
        let mut sent = 0;
        loop {
            let asked = match requests.message().await {
                Ok(Some(request)) => request.request.unwrap(),
                Ok(None) | Err(_) => return,
            };
            if let Asked::Open(open) = &asked {
                sent = usize::try_from(open.received.unwrap_or_default().stdout).unwrap();
            }
            self.take(asked);
            for said in self.says(&mut sent) {
                let response = ExecResponse { response: Some(said) };
                if answers.send(Ok(response)).await.is_err() {
                    return;
                }
            }
        }
    }
}

#[tonic::async_trait]
impl Relay for Container {
    type ExecStream = Pin<Box<dyn Stream<Item = Result<ExecResponse, Status>> + Send>>;

    async fn exec(&self, request: Request<Streaming<ExecRequest>>) -> Result<Response<Self::ExecStream>, Status> {
        let is_known = !self.openings.lock().unwrap().is_empty();
        if let Some((_, status)) = self
            .refusal
            .as_ref()
            .filter(|(is_first_served, _)| is_known || !is_first_served)
        {
            return Err(status.clone());
        }
        let (sender, answers) = mpsc::channel(64);
        tokio::spawn(self.clone().serve(request.into_inner(), sender));
        Ok(Response::new(Box::pin(tokio_stream::wrappers::ReceiverStream::new(
            answers,
        ))))
    }

    type AttachStream = Pin<Box<dyn Stream<Item = Result<AttachResponse, Status>> + Send>>;

    async fn attach(&self, _: Request<Streaming<AttachRequest>>) -> Result<Response<Self::AttachStream>, Status> {
        Err(Status::unimplemented(""))
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

    async fn stop(&self, _: Request<v1::StopRequest>) -> Result<Response<v1::StopResponse>, Status> {
        Err(Status::unimplemented(""))
    }
}

/// The result of a session: the end, the output, and the number of connections.
async fn run(
    container: &Container,
    next_cut: Option<usize>,
    said: mpsc::Receiver<Local>,
    left: watch::Receiver<bool>,
) -> (Result<Over, Error>, Vec<u8>, usize) {
    let (address, serving) = fragile::serve(container.clone()).await;
    let dials: Arc<Mutex<usize>> = Arc::default();
    let dial = GrowingDial {
        address,
        next_cut,
        dials: dials.clone(),
        is_cut_both_ways: true,
    };
    let (out, err) = (Shared::default(), Shared::default());
    let output = Output::new(Target::plain(out.clone()), Target::plain(err));
    let open = ExecOpen {
        command: vec!["cat".into()],
        stdin: true,
        ..ExecOpen::default()
    };
    let ended = soon(Exec::new(dial, open, output.clone(), Messages::new("job", true, &output)).run(said, left)).await;
    output.flush().await.unwrap();
    serving.abort();
    let dials = *dials.lock().unwrap();
    let out = out.0.lock().unwrap().clone();
    (ended, out, dials)
}

#[tokio::test]
async fn a_megabyte_goes_in_and_comes_back_once_over_any_number_of_cuts() {
    let input: Vec<u8> = (0..1 << 20).map(|at: usize| (at * 31 % 251) as u8).collect();
    for cut in [None, Some(20_000), Some(70_000)] {
        let container = Container::default();
        let (ended, output, dials) = run(&container, cut, speak(input.clone()), nobody_leaves()).await;
        assert!(matches!(ended.unwrap(), Over::Exit(exit) if exit.value == 9));
        assert!(*container.input.lock().unwrap() == input && output == input, "{cut:?}");
        assert!(dials > 5 || cut.is_none(), "{dials} connections");
        assert!(*container.let_go.borrow() || cut.is_some(), "nobody comes back");
        let openings = container.openings.lock().unwrap();
        assert!(openings.iter().all(|open| open.session == openings[0].session));
        assert!(!openings[0].resume && openings.last().unwrap().resume == (dials > 1));
    }
}

#[tokio::test]
async fn exec_of_a_command_that_closes_its_input_exits_with_the_commands_code() {
    let container = Container {
        closes_after: Some(20_000),
        ..Container::default()
    };
    let (ended, _, dials) = run(&container, None, speak(vec![1; 70_000]), nobody_leaves()).await;
    assert!(matches!(ended.unwrap(), Over::Exit(exit) if exit.value == 9));
    assert_eq!(dials, 1);
}

#[tokio::test]
async fn a_session_that_is_refused_or_lost_is_not_tried_again() {
    for (is_first_served, status) in [
        (false, Status::failed_precondition("the process has not started yet")),
        (true, Status::aborted("the session is lost")),
    ] {
        let container = Container {
            refusal: Some((is_first_served, status.clone())),
            ..Container::default()
        };
        let (ended, _, dials) = run(&container, Some(60_000), speak(vec![1; 200_000]), nobody_leaves()).await;
        let error = ended.unwrap_err();
        assert_eq!(error.to_string(), status.message());
        assert!(matches!(error, Error::Relay(told) if told.code() == status.code()));
        assert_eq!(dials > 1, is_first_served);
    }
}

#[tokio::test]
async fn a_relay_that_leaves_bytes_out_is_not_believed() {
    let container = Container {
        misplaced: 1,
        ..Container::default()
    };
    let (ended, output, _) = run(&container, None, speak(vec![1; 100]), nobody_leaves()).await;
    assert!(matches!(
        ended.unwrap_err(),
        Error::Misplaced { offset: 1, expected: 0 }
    ));
    assert!(output.is_empty());
}

#[tokio::test]
async fn who_leaves_says_so() {
    let container = Container::default();
    let (leaving, left) = watch::channel(false);
    let (local, said) = mpsc::channel(1);
    local.send(Local::Bytes("x".into())).await.unwrap();
    let input = container.input.clone();
    let looking = tokio::spawn(async move {
        let mut pause = tokio::time::interval(Duration::from_millis(5));
        while input.lock().unwrap().is_empty() {
            pause.tick().await;
        }
        leaving.send_replace(true);
        // The keyboard is still there.
        local.closed().await;
    });
    let (ended, ..) = run(&container, None, said, left).await;
    assert!(matches!(ended.unwrap(), Over::Left { is_told: true }));
    soon(container.let_go.subscribe().wait_for(|has| *has)).await.unwrap();
    looking.abort();
}
