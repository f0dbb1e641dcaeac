//! One writer's stream: input by offset, the size of the terminal, and how far the input has come.

use std::collections::VecDeque;
use std::pin::Pin;
use std::time::Duration;

use futures::Stream;
use remoteprocess_entrypoint::input::{InputState, WindowSize};
use remoteprocess_entrypoint::message::MAX_REQUEST_BYTES;
use remoteprocess_proto::v1::attach_request::Request as Asked;
use remoteprocess_proto::v1::{AttachOpen, AttachRequest, AttachResponse};
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tonic::{Status, Streaming};

use crate::process::input::{InputError, Lease, Opening};
use crate::process::{Process, Writer};

/// Time for the first message.
const OPENING: Duration = Duration::from_secs(5);
/// How often a silent stream says that it lives.
const HEARTBEAT: Duration = Duration::from_secs(10);
/// Bytes that wait for the program to read; a writer that keeps to less than that can always change the size.
const WAITING: usize = 256 * 1024;
/// Longest text of a writer about itself, in bytes.
const NAME: usize = 1024;

/// What a writer is told.
pub type Answers = Pin<Box<dyn Stream<Item = Result<AttachResponse, Status>> + Send>>;

/// Gives the input to whoever asks for it in the first message, if it is free.
pub async fn attach(process: &Process, mut requests: Streaming<AttachRequest>) -> Result<Answers, Status> {
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
            waiting: VecDeque::new(),
            told: None,
        };
        match attached.serve(requests).await {
            Ok(()) => attached.writer.let_go(),
            // Nobody may be there to hear it.
            Err(Some(status)) => drop(attached.answers.send(Err(status)).await),
            Err(None) => {}
        }
    });
    Ok(Box::pin(futures::stream::unfold(answers, |mut answers| async move {
        Some((answers.recv().await?, answers))
    })))
}

// tonic's own error type.
#[allow(clippy::result_large_err)]
fn check(open: AttachOpen) -> Result<Opening, Status> {
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
        InputError::None | InputError::Ended => Status::failed_precondition(text),
        InputError::Held(_) => Status::resource_exhausted(text),
        InputError::TakenOver(_) => Status::aborted(text),
        InputError::Leaving => Status::unavailable(text),
    }
}

/// Something that has its place in the input.
enum Piece {
    Bytes(u64, bytes::Bytes),
    End(u64),
}

/// A writer's place in the input.
struct Attached {
    writer: Writer,
    answers: mpsc::Sender<Result<AttachResponse, Status>>,
    /// Not accepted yet, dense.
    waiting: VecDeque<Piece>,
    told: Option<InputState>,
}

/// Why a stream is over: with a word, or because it broke.
type Over = Option<Status>;

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
                self.forward(state);
            }
            if !has_more && self.waiting.is_empty() {
                return Ok(());
            }
            let may_read = has_more && self.waiting_bytes() < WAITING;
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

    fn waiting_bytes(&self) -> usize {
        let length = |piece: &Piece| match piece {
            Piece::Bytes(_, bytes) => bytes.len(),
            Piece::End(_) => 0,
        };
        self.waiting.iter().map(length).sum()
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
        let invalid = |text: &str| Some(Status::invalid_argument(text));
        match request.request {
            Some(Asked::Input(input)) => {
                if input.bytes.len() > remoteprocess_proto::MAX_CHUNK {
                    return Err(invalid("a chunk of input is longer than 64 KiB"));
                }
                self.check_place(input.offset)?;
                self.waiting.push_back(Piece::Bytes(input.offset, input.bytes));
            }
            Some(Asked::End(end)) => {
                self.check_place(end.offset)?;
                self.waiting.push_back(Piece::End(end.offset));
            }
            Some(Asked::Resize(size)) => {
                let side = |length: u32| u16::try_from(length).unwrap_or(u16::MAX);
                self.writer.resize(WindowSize {
                    rows: side(size.rows),
                    columns: side(size.columns),
                });
            }
            Some(Asked::Open(_)) | None => return Err(invalid("open comes first, and once")),
        }
        Ok(())
    }

    /// Nothing may be missing before this offset.
    fn check_place(&self, offset: u64) -> Result<(), Over> {
        let reached = match self.waiting.back() {
            Some(Piece::Bytes(begin, bytes)) => Some(begin + bytes.len() as u64),
            Some(Piece::End(end)) => Some(*end),
            None => self.told.map(|told| told.offset),
        };
        match reached {
            Some(reached) if offset > reached => Err(Some(Status::out_of_range(format!(
                "the input has a hole: {reached} bytes of it are known, and this begins at {offset}"
            )))),
            _ => Ok(()),
        }
    }

    /// Drops what was accepted, and sends what comes next, if there is room.
    fn forward(&mut self, state: InputState) {
        while let Some(piece) = self.waiting.front_mut() {
            match piece {
                _ if state.is_over => {}
                Piece::Bytes(offset, bytes) => {
                    let known = usize::try_from(state.offset.saturating_sub(*offset)).unwrap_or(usize::MAX);
                    *bytes = bytes.split_off(known.min(bytes.len()));
                    *offset = (*offset).max(state.offset);
                    if !bytes.is_empty() {
                        if state.room > 0 {
                            let length = bytes.len().min(state.room as usize);
                            self.writer.send(*offset, bytes[..length].to_vec());
                        }
                        return;
                    }
                }
                Piece::End(offset) if *offset >= state.offset => {
                    if state.room > 0 {
                        self.writer.end(*offset);
                    }
                    return;
                }
                // Somebody has written beyond it.
                Piece::End(_) => {}
            }
            self.waiting.pop_front();
        }
    }
}
