//! The stream of one writer: input by offset, the size of the terminal, and how far the input has come.

use std::pin::Pin;
use std::time::Duration;

use futures::Stream;
use remoteprocess_entrypoint::input::InputState;
use remoteprocess_entrypoint::message::MAX_REQUEST_BYTES;
use remoteprocess_proto::timing::HEARTBEAT;
use remoteprocess_proto::v1::attach_request::Request as Asked;
use remoteprocess_proto::v1::{AttachOpen, AttachRequest, AttachResponse};
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tonic::{Status, Streaming};

use super::check_version;
use super::input::{Due, Incoming};
use crate::process::input::{InputError, Lease, Opening};
use crate::process::settings::window;
use crate::process::{Process, Writer};

/// Time for the first message.
pub(super) const OPENING: Duration = Duration::from_secs(5);
/// Maximum length of a name that a writer gives itself, in bytes.
pub(super) const NAME: usize = 1024;

/// Messages to a writer.
pub(super) type Answers = Pin<Box<dyn Stream<Item = Result<AttachResponse, Status>> + Send>>;

/// Gives the input to the client that asks for it in the first message, if it is free.
pub(super) async fn attach(process: &Process, mut requests: Streaming<AttachRequest>) -> Result<Answers, Status> {
    let opening = match timeout(OPENING, requests.message()).await {
        Ok(Ok(Some(AttachRequest {
            request: Some(Asked::Open(open)),
        }))) => check(open)?,
        Ok(Err(status)) => return Err(status),
        Ok(Ok(_)) | Err(_) => return Err(Status::invalid_argument("the first message must be open")),
    };
    let writer = process.write(opening).await.map_err(|error| refuse(&error))?;
    let (sender, answers) = mpsc::channel(4);
    tokio::spawn(async move {
        let mut attached = Attached {
            writer,
            answers: sender,
            incoming: Incoming::default(),
            told: None,
        };
        match attached.serve(requests).await {
            Ok(()) => attached.writer.let_go(),
            // The client may be gone.
            Err(Some(status)) => drop(attached.answers.send(Err(status)).await),
            Err(None) => {}
        }
    });
    Ok(Box::pin(futures::stream::unfold(answers, |mut answers| async move {
        Some((answers.recv().await?, answers))
    })))
}

// tonic's own error type.
fn check(open: AttachOpen) -> Result<Opening, Status> {
    check_version(open.protocol)?;
    if !(1..=MAX_REQUEST_BYTES).contains(&open.session.len()) || open.user.len() > NAME {
        return Err(Status::invalid_argument(format!(
            "session must have 1 to {MAX_REQUEST_BYTES} bytes, user at most {NAME}"
        )));
    }
    Ok(Opening {
        lease: Lease {
            session: open.session,
            user: open.user,
        },
        resume: open.resume,
        take_over: open.take_over,
    })
}

fn refuse(error: &InputError) -> Status {
    let text = error.to_string();
    match error {
        InputError::None | InputError::File => Status::failed_precondition(text),
        InputError::Ended => Status::out_of_range(text),
        InputError::Held(_) => Status::resource_exhausted(text),
        InputError::TakenOver(_) => Status::aborted(text),
        InputError::Leaving => Status::unavailable(text),
    }
}

/// A writer that has the input.
struct Attached {
    writer: Writer,
    answers: mpsc::Sender<Result<AttachResponse, Status>>,
    incoming: Incoming,
    told: Option<InputState>,
}

/// Why a stream failed: the error to send, or `None` if the connection is gone.
pub(super) type Over = Option<Status>;

impl Attached {
    /// Serves until the writer lets go.
    async fn serve(&mut self, mut requests: Streaming<AttachRequest>) -> Result<(), Over> {
        let mut heartbeat = interval(HEARTBEAT);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut has_more = true;
        loop {
            let view = self.writer.look().map_err(|error| Some(refuse(&error)))?;
            if let Some(state) = view.state {
                self.tell(state, false).await?;
                match self.incoming.due(state) {
                    Some(Due::Bytes(offset, bytes)) => self.writer.send(offset, bytes),
                    Some(Due::End(offset)) => self.writer.end(offset),
                    None => {}
                }
            }
            if !has_more && self.incoming.is_empty() {
                return Ok(());
            }
            let may_read = has_more && self.incoming.has_room();
            tokio::select! {
                has_changed = self.writer.changed() => if !has_changed {
                    return Err(Some(refuse(&InputError::Leaving)));
                },
                request = requests.message(), if may_read => match request {
                    Ok(Some(request)) => self.take(request)?,
                    Ok(None) => has_more = false,
                    Err(_) => return Err(None),
                },
                _ = heartbeat.tick() => if let Some(state) = view.state {
                    self.tell(state, true).await?;
                },
                () = self.answers.closed() => return Err(None),
            }
        }
    }

    async fn tell(&mut self, state: InputState, again: bool) -> Result<(), Over> {
        let is_known = self
            .told
            .is_some_and(|told| (told.offset, told.is_over) == (state.offset, state.is_over));
        if is_known && !again {
            return Ok(());
        }
        self.told = Some(state);
        let answer = AttachResponse {
            accepted: state.offset,
            is_over: state.is_over,
        };
        self.answers.send(Ok(answer)).await.map_err(|_| None)
    }

    fn take(&mut self, request: AttachRequest) -> Result<(), Over> {
        match request.request {
            Some(Asked::Input(input)) => self.incoming.take(input)?,
            Some(Asked::End(end)) => self.incoming.end(end)?,
            Some(Asked::Resize(size)) => self.writer.resize(window(size)),
            Some(Asked::Open(_)) | None => {
                return Err(Some(Status::invalid_argument("open comes first, and once")));
            }
        }
        Ok(())
    }
}
