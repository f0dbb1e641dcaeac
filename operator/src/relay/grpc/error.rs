//! Conversion between errors of the relay and gRPC statuses.

use tonic::Status;

use crate::relay::error::{Code, Error};

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        let code = match error.code {
            Code::InvalidArgument => tonic::Code::InvalidArgument,
            Code::OutOfRange => tonic::Code::OutOfRange,
            Code::NotFound => tonic::Code::NotFound,
            Code::PermissionDenied => tonic::Code::PermissionDenied,
            Code::Unauthenticated => tonic::Code::Unauthenticated,
            Code::FailedPrecondition => tonic::Code::FailedPrecondition,
            Code::Aborted => tonic::Code::Aborted,
            Code::ResourceExhausted => tonic::Code::ResourceExhausted,
            Code::Unimplemented => tonic::Code::Unimplemented,
            Code::DeadlineExceeded => tonic::Code::DeadlineExceeded,
            Code::Unavailable => tonic::Code::Unavailable,
            Code::Internal => tonic::Code::Internal,
        };
        Self::new(code, error.message)
    }
}

/// Bytes that are passed on of a sentence of a peer.
const SENTENCE: usize = 1024;

/// What a peer has answered. Its metadata stays behind, and so does what is too long of its sentence.
impl From<Status> for Error {
    fn from(status: Status) -> Self {
        let code = match status.code() {
            tonic::Code::InvalidArgument => Code::InvalidArgument,
            tonic::Code::OutOfRange => Code::OutOfRange,
            tonic::Code::NotFound => Code::NotFound,
            tonic::Code::PermissionDenied => Code::PermissionDenied,
            tonic::Code::Unauthenticated => Code::Unauthenticated,
            tonic::Code::FailedPrecondition => Code::FailedPrecondition,
            tonic::Code::Aborted => Code::Aborted,
            tonic::Code::ResourceExhausted => Code::ResourceExhausted,
            tonic::Code::Unimplemented => Code::Unimplemented,
            tonic::Code::DeadlineExceeded => Code::DeadlineExceeded,
            tonic::Code::Unavailable | tonic::Code::Cancelled => Code::Unavailable,
            tonic::Code::Ok
            | tonic::Code::Unknown
            | tonic::Code::AlreadyExists
            | tonic::Code::DataLoss
            | tonic::Code::Internal => Code::Internal,
        };
        let message = status.message();
        Self::new(code, &message[..message.floor_char_boundary(SENTENCE)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_survives_the_way_from_replica_to_replica() {
        for code in (0..17).map(tonic::Code::from) {
            let once = Error::from(Status::new(code, "why"));
            let twice = Error::from(Status::from(once.clone()));
            assert_eq!(once, twice, "{code:?}");
            assert_eq!(once.message, "why");
            let long = Error::from(Status::new(code, "ä".repeat(1 << 20)));
            assert_eq!(long.message.len(), SENTENCE);
        }
    }
}
