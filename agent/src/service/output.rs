//! The stream of one watcher: state, output, heartbeats, the end.

use bytes::Bytes;
use futures::Stream;
use remoteprocess_proto::timing::HEARTBEAT;
use remoteprocess_proto::v1::output_frame::Frame;
use remoteprocess_proto::v1::{self, Gap, Heartbeat, OutputFrame, Reason, Spool, State, Stream as WireStream};
use remoteprocess_proto::wire::encode;
use tokio::sync::watch;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};
use tonic::Status;

use super::{cursor, refuse};
use crate::exit;
use crate::home::HomeStream;
use crate::process::machine::Phase;
use crate::process::{self, Process};
use crate::spool::{self, Item, Policy, Progress, Reader, Stall};

/// One watcher of the output.
pub(super) struct Output {
    reader: Reader,
    status: watch::Receiver<process::Status>,
    progress: watch::Receiver<Progress>,
    held: watch::Receiver<Option<Stall>>,
    process: Process,
    home_stream: Option<HomeStream>,
    heartbeat: Interval,
    told: Option<State>,
    /// State of the spool that the watcher has not been told yet.
    spool_news: Option<Spool>,
    stage: Stage,
}

#[derive(PartialEq, Eq)]
enum Stage {
    Output,
    Exit,
    Over,
}

impl Output {
    /// Begins at the position of `reader`. With `home_stream` it is the stream of a home, and ends when a later home comes.
    pub(super) fn new(reader: Reader, process: &Process, home_stream: Option<HomeStream>) -> Self {
        let mut heartbeat = interval_at(Instant::now() + HEARTBEAT, HEARTBEAT);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self {
            reader,
            status: process.status(),
            progress: process.spool().watch(),
            held: process.spool().watch_held(),
            process: process.clone(),
            home_stream,
            heartbeat,
            told: None,
            spool_news: None,
            stage: Stage::Output,
        }
    }

    /// The messages, each with its prefix.
    pub(super) fn into_stream(self) -> impl Stream<Item = Result<Bytes, Status>> + Send {
        futures::stream::unfold(self, |mut output| async move {
            let next = output.next().await?;
            if next.is_err() {
                output.stage = Stage::Over;
            }
            Some((next, output))
        })
    }

    async fn next(&mut self) -> Option<Result<Bytes, Status>> {
        loop {
            if let Some(state) = self.news() {
                return Some(Ok(message(Frame::State(state))));
            }
            if let Some(spool) = self.spool_news.take() {
                return Some(Ok(message(Frame::Spool(spool))));
            }
            match self.stage {
                Stage::Over => return None,
                Stage::Exit => {
                    let seals = self.progress.borrow_and_update().seals.clone();
                    if let Some(exit) =
                        exit::frame(&self.status.borrow().facts, seals.as_ref(), self.process.spool().lost())
                    {
                        self.stage = Stage::Over;
                        return Some(Ok(message(Frame::Exit(exit))));
                    }
                }
                Stage::Output => {}
            }
            let is_reading = self.stage == Stage::Output;
            tokio::select! {
                biased;
                () = superseded(self.home_stream.as_ref()) => {
                    return Some(Err(Status::aborted("another relay has become the home of this process")));
                }
                _ = self.status.changed() => {}
                _ = self.held.changed() => self.look_at_spool(),
                item = self.reader.next(), if is_reading => match item {
                    Ok(Item::Chunk(chunk)) => return Some(Ok(chunk.wire)),
                    Ok(Item::Gap(range)) => {
                        return Some(Ok(message(Frame::Gap(gap(range, self.process.spool().policy())))));
                    }
                    Ok(Item::End) => self.stage = Stage::Exit,
                    Err(error) => return Some(Err(refuse(&error))),
                },
                _ = self.progress.changed(), if !is_reading => {}
                _ = self.heartbeat.tick() => {
                    self.look_at_spool();
                    let offsets = Some(cursor(self.reader.cursor()));
                    return Some(Ok(message(Frame::Heartbeat(Heartbeat { offsets, attempt: 0 }))));
                }
            }
        }
    }

    fn look_at_spool(&mut self) {
        if self.home_stream.is_none() {
            return;
        }
        self.spool_news = Some(Spool {
            blocked: self.held.borrow_and_update().is_some(),
            used_bytes: self.progress.borrow().unarchived(),
            size_bytes: self.process.spool().policy().size,
        });
    }

    /// The state, if it differs from the one last sent.
    fn news(&mut self) -> Option<State> {
        if self.stage == Stage::Over {
            return None;
        }
        let (phase, is_warned) = {
            let status = self.status.borrow_and_update();
            (status.phase, status.facts.is_warned())
        };
        if phase == Phase::Exited {
            // The end is sent as an exit, after the output.
            return None;
        }
        let state = state(phase, is_warned, *self.held.borrow_and_update());
        if self.told.as_ref() == Some(&state) {
            return None;
        }
        self.told = Some(state.clone());
        Some(state)
    }
}

async fn superseded(home_stream: Option<&HomeStream>) {
    match home_stream {
        Some(home_stream) => home_stream.superseded().await,
        None => std::future::pending().await,
    }
}

fn message(frame: Frame) -> Bytes {
    encode(&OutputFrame { frame: Some(frame) })
}

fn gap(spool::Gap { stream, from, to }: spool::Gap, policy: Policy) -> Gap {
    Gap {
        stream: WireStream::from(stream).into(),
        from,
        to: Some(to),
        reason: policy.when_full.reason().into(),
    }
}

/// The state as people see it. The reason shows a near deadline, the message shows output that is held back.
fn state(phase: Phase, is_warned: bool, stalled: Option<Stall>) -> State {
    let (phase, reason, message) = match phase {
        Phase::Waiting => (
            v1::Phase::Pending,
            Reason::ContainerCreating,
            "the container is being created",
        ),
        Phase::Starting => (
            v1::Phase::Starting,
            Reason::Enrolling,
            "waiting for the start to be granted",
        ),
        Phase::Running | Phase::Exited => {
            let reason = if is_warned {
                Reason::DeadlineNear
            } else {
                Reason::Running
            };
            (v1::Phase::Running, reason, held_back(stalled))
        }
        Phase::Paused => (v1::Phase::Paused, Reason::Paused, "the program is paused"),
        Phase::Stopping => (v1::Phase::Stopping, Reason::Stopping, ""),
    };
    State {
        phase: phase.into(),
        reason: reason.into(),
        message: message.to_owned(),
    }
}

fn held_back(stalled: Option<Stall>) -> &'static str {
    match stalled {
        None => "",
        Some(Stall::SpoolFull) => "the output is pushed back: the spool is full until the archive takes more",
        Some(Stall::VolumeFull) => "the output is pushed back: the spool's volume takes no more",
    }
}
