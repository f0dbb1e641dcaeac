//! Input of the agent for tests.

use std::pin::Pin;
use std::sync::{Arc, Mutex};

use futures::{Stream, StreamExt};
use remoteprocess_proto::v1::attach_request::Request as Asked;
use remoteprocess_proto::v1::{AttachOpen, AttachRequest, AttachResponse};
use tonic::{Status, Streaming};

use super::Program;

/// The messages of writers.
#[derive(Default)]
pub(crate) struct Taken {
    pub writers: Mutex<Vec<AttachOpen>>,
    /// The bytes, as they came.
    pub input: Mutex<Vec<u8>>,
}

pub(super) type Answers = Pin<Box<dyn Stream<Item = Result<AttachResponse, Status>> + Send>>;

/// Takes everything, and answers each message. A change of the size ends it, as if another writer had taken over.
pub(super) fn take(program: Arc<Program>, requests: Streaming<AttachRequest>) -> Answers {
    Box::pin(requests.map(move |request| {
        let mut input = program.taken.input.lock().unwrap();
        let mut is_over = false;
        match request?.request.unwrap() {
            Asked::Open(open) => program.taken.writers.lock().unwrap().push(open),
            Asked::Input(bytes) => {
                assert_eq!(bytes.offset, input.len() as u64);
                input.extend_from_slice(&bytes.bytes);
            }
            Asked::End(_) => is_over = true,
            Asked::Resize(_) => return Err(Status::aborted("bob has taken over the input of the process")),
        }
        let accepted = input.len() as u64;
        Ok(AttachResponse { accepted, is_over })
    }))
}
