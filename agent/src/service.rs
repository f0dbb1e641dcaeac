//! `Executor`: what the operator can ask of this process. It only translates.

mod attach;
mod endpoint;
mod exec;
mod input;
mod output;

use std::time::Duration;

use remoteprocess_entrypoint::message::{MAX_REQUEST_BYTES, StopCause, Target};
use remoteprocess_proto::timing::to_wire;
use remoteprocess_proto::v1::executor_get_state_response::Phase as WirePhase;
use remoteprocess_proto::v1::executor_server::Executor;
use remoteprocess_proto::v1::{
    AttachRequest, CommitRequest, CommitResponse, Cursor, ExecRequest, ExecutorGetStateRequest,
    ExecutorGetStateResponse, ExecutorPauseRequest, ExecutorPauseResponse, ExecutorSetDeadlineRequest,
    ExecutorSetDeadlineResponse, ExecutorSignalRequest, ExecutorSignalResponse, ExecutorStopRequest,
    ExecutorStopResponse, ExecutorWatchOutputRequest, OutputFrame, SignalTarget,
};
use remoteprocess_proto::{PROTOCOL, check_protocol};
use tokio::sync::watch;
use tonic::{Request, Response, Status, Streaming};

use crate::exit;
use crate::home::Homes;
use crate::process::facts::{Done, Stop};
use crate::process::machine::Phase;
use crate::process::settings::SIGNALS;
use crate::process::{Process, RequestError};
use crate::spool::{self, Offsets, record};
pub use endpoint::ExecutorEndpoint;
use output::Output;

/// How long the entrypoint has to answer a request.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// The signal of a stop that comes before the launch.
const SIGTERM: i32 = 15;

/// The service of one process. Cheap to clone.
#[derive(Clone, Debug)]
pub struct ExecutorService {
    process: Process,
    homes: Homes,
    /// Becomes true with the final commit.
    done: watch::Sender<bool>,
}

impl ExecutorService {
    /// Serves `process`; `done` becomes true with the final commit.
    pub const fn new(process: Process, homes: Homes, done: watch::Sender<bool>) -> Self {
        Self { process, homes, done }
    }

    /// The server, with the operator's role required on every method.
    pub fn into_server(self) -> ExecutorEndpoint {
        endpoint::endpoint(self)
    }

    // tonic's own error type.
    fn output(&self, request: ExecutorWatchOutputRequest) -> Result<Output, Status> {
        check_version(request.protocol)?;
        let begin = offsets(request.cursor.unwrap_or_default());
        let spool = self.process.spool();
        let reader = if request.home {
            spool.home_reader(begin)
        } else {
            spool.reader(begin)
        };
        let reader = reader.map_err(|error| refuse(&error))?;
        // The cursor says what the home has received, not what it holds durably: only `Commit` says that.
        let home_stream = request.home.then(|| {
            tracing::info!(?begin, "a home has opened its stream");
            self.homes.open_stream()
        });
        Ok(Output::new(reader, &self.process, home_stream))
    }
}

#[tonic::async_trait]
impl Executor for ExecutorService {
    async fn get_state(
        &self,
        request: Request<ExecutorGetStateRequest>,
    ) -> Result<Response<ExecutorGetStateResponse>, Status> {
        check_version(request.get_ref().protocol)?;
        let status = self.process.status().borrow().clone();
        let progress = self.process.spool().progress();
        let phase = match status.phase {
            Phase::Waiting => WirePhase::Waiting,
            Phase::Starting => WirePhase::Starting,
            Phase::Running => WirePhase::Running,
            Phase::Paused => WirePhase::Paused,
            Phase::Stopping => WirePhase::Stopping,
            Phase::Exited => WirePhase::Exited,
        };
        Ok(Response::new(ExecutorGetStateResponse {
            protocol: PROTOCOL,
            phase: phase.into(),
            started_unix_nanos: status.facts.started.map_or(0, |started| started.at_unix_nanos),
            written: Some(cursor(progress.written)),
            dropped: Some(cursor(progress.dropped)),
            exit: exit::frame(&status.facts, progress.seals.as_ref(), self.process.spool().lost()),
            run_deadline: status.facts.run_deadline().and_then(to_wire),
        }))
    }

    type WatchOutputStream = futures::stream::Empty<Result<OutputFrame, Status>>;

    /// [`ExecutorEndpoint`] answers this method before tonic sees it.
    async fn watch_output(
        &self,
        _: Request<ExecutorWatchOutputRequest>,
    ) -> Result<Response<Self::WatchOutputStream>, Status> {
        Err(Status::unimplemented("WatchOutput is answered elsewhere"))
    }

    async fn signal(
        &self,
        request: Request<ExecutorSignalRequest>,
    ) -> Result<Response<ExecutorSignalResponse>, Status> {
        let request = request.into_inner();
        let number = check_signal(request.number)?;
        let target = match SignalTarget::try_from(request.target) {
            Ok(SignalTarget::Main) => Target::Main,
            Ok(SignalTarget::Group) => Target::Group,
            Ok(SignalTarget::All) => Target::All,
            Err(_) => return Err(Status::invalid_argument("target is none of main, group, all")),
        };
        check_request_id(&request.request_id)?;
        let sending = self.process.signal(request.request_id, number, target);
        answered(sending).await?;
        Ok(Response::new(ExecutorSignalResponse {}))
    }

    async fn pause(&self, request: Request<ExecutorPauseRequest>) -> Result<Response<ExecutorPauseResponse>, Status> {
        let request = request.into_inner();
        check_request_id(&request.request_id)?;
        answered(self.process.pause(request.request_id, request.paused)).await?;
        Ok(Response::new(ExecutorPauseResponse {}))
    }

    async fn set_deadline(
        &self,
        request: Request<ExecutorSetDeadlineRequest>,
    ) -> Result<Response<ExecutorSetDeadlineResponse>, Status> {
        let run_deadline = request.into_inner().run_deadline.map(Duration::try_from);
        let run_deadline = match run_deadline {
            Some(Ok(Duration::ZERO) | Err(_)) => {
                return Err(Status::invalid_argument(
                    "run_deadline must be more than 0: to end the program, stop it",
                ));
            }
            Some(Ok(run_deadline)) => Some(run_deadline),
            None => None,
        };
        answered(self.process.set_run_deadline(run_deadline)).await?;
        Ok(Response::new(ExecutorSetDeadlineResponse {}))
    }

    async fn stop(&self, request: Request<ExecutorStopRequest>) -> Result<Response<ExecutorStopResponse>, Status> {
        let request = request.into_inner();
        let launch = self.process.status().borrow().facts.launch;
        // Before the launch there is nothing that could get the signal.
        let (signal, grace_millis) = launch.map_or((SIGTERM, 0), |launch| {
            let order = launch.settings.order;
            (order.stop_signal, order.stop_grace_millis)
        });
        let stop = Stop {
            requested_by: request.requested_by,
            message: request.message,
            signal: check_signal(request.signal.unwrap_or(signal))?,
            grace_millis: request
                .grace_seconds
                .map_or(grace_millis, |seconds| u64::from(seconds) * 1000),
            cause: StopCause::Requested,
        };
        self.process.stop(stop).await;
        Ok(Response::new(ExecutorStopResponse {}))
    }

    type AttachStream = attach::Answers;

    async fn attach(&self, request: Request<Streaming<AttachRequest>>) -> Result<Response<Self::AttachStream>, Status> {
        let answers = attach::attach(&self.process, request.into_inner()).await?;
        Ok(Response::new(answers))
    }

    type ExecStream = exec::Answers;

    async fn exec(&self, request: Request<Streaming<ExecRequest>>) -> Result<Response<Self::ExecStream>, Status> {
        let answers = exec::exec(&self.process, request.into_inner()).await?;
        Ok(Response::new(answers))
    }

    async fn commit(&self, request: Request<CommitRequest>) -> Result<Response<CommitResponse>, Status> {
        let request = request.into_inner();
        let spool = self.process.spool();
        spool
            .commit(offsets(request.archived.unwrap_or_default()))
            .map_err(|error| refuse(&error))?;
        if !request.r#final {
            return Ok(Response::new(CommitResponse {}));
        }
        if self.process.status().borrow().facts.closed.is_none() {
            return Err(Status::failed_precondition("the process has not ended"));
        }
        let at_unix_nanos = crate::clock::unix_nanos();
        let directory = spool.directory().to_owned();
        tokio::task::spawn_blocking(move || record::store(&directory, &Done { at_unix_nanos }))
            .await
            .map_err(|_| Status::internal("the agent is ending"))?
            .map_err(|error| refuse(&error))?;
        self.done.send_replace(true);
        Ok(Response::new(CommitResponse {}))
    }
}

/// Methods whose requests carry no version follow one that does: a home watches the output first.
// tonic's own error type.
fn check_version(protocol: u32) -> Result<(), Status> {
    check_protocol(protocol).map_err(|error| Status::failed_precondition(error.to_string()))
}

// tonic's own error type.
fn check_request_id(id: &str) -> Result<(), Status> {
    match id.len() {
        0 => Err(Status::invalid_argument(
            "request_id is empty: a repeat could not be told",
        )),
        1..=MAX_REQUEST_BYTES => Ok(()),
        length => Err(Status::invalid_argument(format!(
            "request_id has {length} bytes: at most {MAX_REQUEST_BYTES}"
        ))),
    }
}

/// The answer to a request, in time. `Unavailable`: ask again, with the same id.
async fn answered(asking: impl Future<Output = Result<(), RequestError>>) -> Result<(), Status> {
    match tokio::time::timeout(ANSWER_LIMIT, asking).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error @ (RequestError::EntrypointAway | RequestError::Unanswered))) => {
            Err(Status::unavailable(error.to_string()))
        }
        Ok(Err(error)) => Err(Status::failed_precondition(error.to_string())),
        Err(_) => Err(Status::deadline_exceeded("the entrypoint did not answer")),
    }
}

// tonic's own error type.
fn check_signal(number: i32) -> Result<i32, Status> {
    if SIGNALS.contains(&number) {
        Ok(number)
    } else {
        Err(Status::invalid_argument(format!("{number} is no signal")))
    }
}

fn refuse(error: &spool::Error) -> Status {
    match error {
        spool::Error::Dropped { .. } | spool::Error::Beyond { .. } => Status::out_of_range(error.to_string()),
        spool::Error::Io { .. } | spool::Error::Damaged(_) => {
            tracing::error!(error = error as &dyn std::error::Error, "the spool");
            Status::internal("the agent cannot read its spool")
        }
    }
}

const fn cursor(offsets: Offsets) -> Cursor {
    Cursor {
        stdout: offsets.stdout,
        stderr: offsets.stderr,
    }
}

const fn offsets(cursor: Cursor) -> Offsets {
    Offsets {
        stdout: cursor.stdout,
        stderr: cursor.stderr,
    }
}
