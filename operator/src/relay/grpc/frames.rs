//! An incoming stream of output, from an agent or from another replica.

use bytes::Bytes;
use prost::Message;
use remoteprocess_proto::v1::OutputFrame;
use remoteprocess_proto::v1::output_frame::Frame;
use remoteprocess_proto::wire::{Messages, call, decode};
use tonic::Request;
use tonic::transport::Channel;

use crate::relay::error::Error;

/// Frames, each with the message that brought it.
pub struct Frames(Messages);

impl Frames {
    /// Calls a method that answers with output.
    pub async fn open(mut channel: Channel, path: &str, request: Request<impl Message>) -> Result<Self, Error> {
        let (_, messages) = call(&mut channel, path, request).await?;
        Ok(Self(messages))
    }

    /// The next frame and its message; `None` at the end. Safe to cancel.
    pub async fn next(&mut self) -> Result<Option<(Frame, Bytes)>, Error> {
        while let Some(wire) = self.0.next().await? {
            if let OutputFrame { frame: Some(frame) } = decode(&wire)? {
                return Ok(Some((frame, wire)));
            }
        }
        Ok(None)
    }
}
