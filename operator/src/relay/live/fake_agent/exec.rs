//! Further commands of the agent for tests.

use std::pin::Pin;
use std::sync::Arc;

use futures::{Stream, StreamExt};
use remoteprocess_proto::v1::exec_request::Request as Asked;
use remoteprocess_proto::v1::exec_response::Response as Said;
use remoteprocess_proto::v1::exit::Outcome;
use remoteprocess_proto::v1::{AttachResponse, Data, ExecRequest, ExecResponse, Exit, Stream as WireStream};
use tonic::{Status, Streaming};

use super::Program;

pub(super) type Answers = Pin<Box<dyn Stream<Item = Result<ExecResponse, Status>> + Send>>;

/// Writes back what it reads, and ends with code 9 at the end of the input. A change of the size means that it was
/// lost.
pub(super) fn run(program: Arc<Program>, requests: Streaming<ExecRequest>) -> Answers {
    Box::pin(requests.map(move |request| {
        let said = match request?.request.unwrap() {
            Asked::Open(open) => {
                program.execs.lock().unwrap().push(open);
                Said::Input(AttachResponse::default())
            }
            Asked::Input(input) => Said::Data(Data {
                stream: WireStream::Stdout.into(),
                offset: input.offset,
                time_unix_nanos: 0,
                bytes: input.bytes,
            }),
            Asked::End(_) => Said::Exit(Exit {
                outcome: Outcome::Code.into(),
                value: 9,
                ..Exit::default()
            }),
            Asked::Resize(_) => return Err(Status::aborted("the session is lost")),
            Asked::HangUp(_) => {
                *program.hang_ups.lock().unwrap() += 1;
                Said::Input(AttachResponse::default())
            }
            Asked::Received(_) => Said::Input(AttachResponse::default()),
        };
        Ok(ExecResponse { response: Some(said) })
    }))
}
