//! One connection to a session: input and confirmations in one direction, output and the end in the other.

use std::pin::Pin;

use futures::Stream;
use remoteprocess_entrypoint::message::MAX_REQUEST_BYTES;
use remoteprocess_entrypoint::session::{Command, MAX_COMMAND_BYTES};
use remoteprocess_proto::timing::HEARTBEAT;
use remoteprocess_proto::v1::exec_request::Request as Asked;
use remoteprocess_proto::v1::exec_response::Response as Said;
use remoteprocess_proto::v1::{AttachResponse, Data, ExecOpen, ExecRequest, ExecResponse, Stream as WireStream};
use tokio::sync::mpsc;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at, timeout};
use tonic::{Status, Streaming};

use super::attach::{NAME, OPENING, Over};
use super::input::{Due, Incoming};
use super::{check_version, offsets};
use crate::exit;
use crate::process::Process;
use crate::process::exec::{Client, ExecError, Opening};
use crate::process::settings::window;

/// Bytes of output in one message.
const CHUNK: usize = 32 * 1024;

/// Messages to a client.
pub(super) type Answers = Pin<Box<dyn Stream<Item = Result<ExecResponse, Status>> + Send>>;

/// Starts or joins the session that the first message asks for.
pub(super) async fn exec(process: &Process, mut requests: Streaming<ExecRequest>) -> Result<Answers, Status> {
    let open = match timeout(OPENING, requests.message()).await {
        Ok(Ok(Some(ExecRequest {
            request: Some(Asked::Open(open)),
        }))) => open,
        Ok(Err(status)) => return Err(status),
        Ok(Ok(_)) | Err(_) => return Err(Status::invalid_argument("the first message must be open")),
    };
    let received = offsets(open.received.unwrap_or_default());
    let opening = check(open)?;
    let client = process.exec(opening).await.map_err(|error| refuse(&error))?;
    let (sender, answers) = mpsc::channel(4);
    tokio::spawn(async move {
        let mut heartbeat = interval_at(Instant::now() + HEARTBEAT, HEARTBEAT);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut attended = Attended {
            client,
            answers: sender,
            incoming: Incoming::default(),
            sent: [received.stdout, received.stderr],
            told: None,
            is_over: false,
            heartbeat,
        };
        match attended.serve(requests).await {
            Ok(()) => attended.client.let_go(),
            // The client may be gone.
            Err(Some(status)) => drop(attended.answers.send(Err(status)).await),
            Err(None) => {}
        }
    });
    Ok(Box::pin(futures::stream::unfold(answers, |mut answers| async move {
        Some((answers.recv().await?, answers))
    })))
}

// tonic's own error type.
fn check(open: ExecOpen) -> Result<Opening, Status> {
    check_version(open.protocol)?;
    let invalid = |text: String| Err(Status::invalid_argument(text));
    if !(1..=MAX_REQUEST_BYTES).contains(&open.session.len()) || open.user.len() > NAME {
        return invalid(format!(
            "session must have 1 to {MAX_REQUEST_BYTES} bytes, user at most {NAME}"
        ));
    }
    let environment = open.environment.into_iter();
    let environment = environment.map(|variable| (Vec::from(variable.name).into(), Vec::from(variable.value).into()));
    let command = Command {
        words: open.command.into_iter().map(|word| Vec::from(word).into()).collect(),
        environment: environment.collect(),
        directory: open.directory.map(|directory| Vec::from(directory).into()),
        stdin: open.stdin,
        terminal: open.terminal.map(window),
    };
    if command.words.is_empty() {
        return invalid("there is no command".to_owned());
    }
    let has_bad_name = |name: &[u8]| name.is_empty() || name.contains(&b'=') || name.contains(&0);
    if command.environment.iter().any(|(name, _)| has_bad_name(name)) {
        return invalid("a name of the environment is empty, or has = or NUL in it".to_owned());
    }
    if command.length() > MAX_COMMAND_BYTES {
        return invalid(format!(
            "command and environment have {} bytes: at most {MAX_COMMAND_BYTES}; pass more by standard input",
            command.length()
        ));
    }
    Ok(Opening {
        name: open.session,
        user: open.user,
        resume: open.resume,
        command,
        received: open.received.map(offsets),
    })
}

fn refuse(error: &ExecError) -> Status {
    let text = error.to_string();
    match error {
        ExecError::NotStarted | ExecError::Ended | ExecError::Refused(_) => Status::failed_precondition(text),
        ExecError::Full => Status::resource_exhausted(text),
        ExecError::Lost | ExecError::Superseded => Status::aborted(text),
        ExecError::Foreign => Status::permission_denied(text),
        ExecError::Beyond => Status::out_of_range(text),
        ExecError::EntrypointAway | ExecError::Leaving => Status::unavailable(text),
    }
}

/// A client that is connected to its session.
struct Attended {
    client: Client,
    answers: mpsc::Sender<Result<ExecResponse, Status>>,
    incoming: Incoming,
    /// Offsets of the next output to send.
    sent: [u64; 2],
    /// What the client was last told about the input.
    told: Option<(u64, bool)>,
    /// Whether the client was told the end.
    is_over: bool,
    heartbeat: Interval,
}

impl Attended {
    /// Serves until the client leaves.
    async fn serve(&mut self, mut requests: Streaming<ExecRequest>) -> Result<(), Over> {
        let answers = self.answers.clone();
        loop {
            let next = self.next()?;
            let may_read = self.incoming.has_room();
            tokio::select! {
                permit = answers.reserve(), if next.is_some() => {
                    let permit = permit.map_err(|_| None)?;
                    if let Some(said) = next {
                        permit.send(Ok(ExecResponse { response: Some(said.clone()) }));
                        self.said(&said);
                    }
                }
                request = requests.message(), if may_read => match request {
                    Ok(Some(ExecRequest { request: Some(Asked::HangUp(_)) })) => return Ok(()),
                    Ok(Some(request)) => self.take(request)?,
                    Ok(None) | Err(_) => return Err(None),
                },
                () = self.client.changed(), if next.is_none() => {}
                _ = self.heartbeat.tick() => self.told = None,
                () = answers.closed() => return Err(None),
            }
        }
    }

    /// The next message to send; also passes input on.
    fn next(&mut self) -> Result<Option<Said>, Over> {
        let (input, due, said) = {
            let state = self.client.look().map_err(|error| Some(refuse(&error)))?;
            if !state.is_running && state.end.is_none() {
                return Ok(None);
            }
            let input = (state.input.offset, state.input.is_over);
            let outputs = state.outputs.iter().zip(self.sent);
            let mut data = outputs.map(|(window, offset)| window.read(offset, CHUNK)).enumerate();
            let data = data.find(|(_, bytes)| !bytes.is_empty());
            let end = state.end_at(self.sent).filter(|_| !self.is_over);
            let said = match data {
                Some((index, bytes)) => Some(Said::Data(Data {
                    stream: [WireStream::Stdout, WireStream::Stderr][index].into(),
                    offset: self.sent[index],
                    time_unix_nanos: 0,
                    bytes,
                })),
                None => end.map(|end| Said::Exit(exit::of_session(end))),
            };
            (input, self.incoming.due(state.input), said)
        };
        match due {
            Some(Due::Bytes(offset, bytes)) => self.client.send(offset, bytes),
            Some(Due::End(offset)) => self.client.end(offset),
            None => {}
        }
        if self.told != Some(input) {
            let (accepted, is_over) = input;
            return Ok(Some(Said::Input(AttachResponse { accepted, is_over })));
        }
        Ok(said)
    }

    fn said(&mut self, said: &Said) {
        match said {
            Said::Input(input) => self.told = Some((input.accepted, input.is_over)),
            Said::Data(data) => {
                let index = usize::from(data.stream() == WireStream::Stderr);
                self.sent[index] += data.bytes.len() as u64;
            }
            Said::Exit(_) => self.is_over = true,
        }
    }

    fn take(&mut self, request: ExecRequest) -> Result<(), Over> {
        match request.request {
            Some(Asked::Input(input)) => self.incoming.take(input)?,
            Some(Asked::End(end)) => self.incoming.end(end)?,
            Some(Asked::Resize(size)) => self.client.resize(window(size)),
            Some(Asked::Received(received)) => self.client.confirm(offsets(received)),
            Some(Asked::Open(_) | Asked::HangUp(_)) | None => {
                return Err(Some(Status::invalid_argument("open comes first, and once")));
            }
        }
        Ok(())
    }
}
