//! An entrypoint introduces itself.

use std::io;

use remoteprocess_entrypoint::message::Secret;

use super::{Baggage, Conversation};
use crate::process::link::Newcomer;
use crate::process::machine::Event;

impl Conversation {
    pub(super) async fn greet(&mut self, mut newcomer: Newcomer) {
        let mut secret = [0; 32];
        if let Err(error) = fill_random(&mut secret) {
            tracing::warn!(%error, "no randomness for a secret");
            return;
        }
        let pipes = std::mem::take(&mut newcomer.descriptors);
        let event = Event::Hello {
            resume: newcomer.resume.clone(),
            has_pipes: !pipes.is_empty(),
            fresh_secret: Secret(secret),
        };
        let newcomer = Some(newcomer);
        self.handle_with(event, Baggage { newcomer, pipes }).await;
    }
}

fn fill_random(bytes: &mut [u8; 32]) -> io::Result<()> {
    let flags = rustix::rand::GetRandomFlags::empty();
    let filled = rustix::rand::getrandom(&mut bytes[..], flags)?;
    // Up to 256 bytes come whole (getrandom(2)).
    debug_assert_eq!(filled, bytes.len());
    Ok(())
}
