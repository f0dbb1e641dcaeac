//! The client: the library's follower, which writes to standard output.

use std::io::Write;

use remoteprocess_client::{Dial, DialError, Follower, Ledger, Sink, SinkError, Want};
use remoteprocess_proto::v1::{Data, Gap, ProcessKey};
use remoteprocess_tls::{Authority, Dialer, Role};
use tokio::time::{Duration, Instant};
use tonic::transport::Channel;

use crate::operator::{Hello, NAME, NAMESPACE, identity, trust_domain};

struct Direct(Dialer, String);

impl Dial for Direct {
    async fn dial(&mut self) -> Result<Channel, DialError> {
        let channel = self.0.connect(&self.1, &Role::Operator).await;
        channel.map_err(|error| DialError::Unreachable(error.to_string()))
    }

    fn discredit(&mut self) {}
}

struct Stdout;

impl Sink for Stdout {
    async fn attempt(&mut self, _: u32) -> Result<(), SinkError> {
        Ok(())
    }

    async fn data(&mut self, data: Data) -> Result<(), SinkError> {
        let written = std::io::stdout().lock().write_all(&data.bytes);
        written.map_err(|error| SinkError::Write(error.to_string()))
    }

    async fn gap(&mut self, gap: Gap) -> Result<(), SinkError> {
        panic!("nothing is lost here: {gap:?}")
    }

    async fn flush(&mut self) -> Result<(), SinkError> {
        Ok(())
    }
}

/// Follows until the process ends.
pub(crate) fn run(hello: &str) {
    let hello: Hello = serde_json::from_str(hello).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.unwrap().block_on(follow(hello));
}

async fn follow(hello: Hello) {
    let authority = Authority::from_pem(&hello.certificate, &hello.key, &trust_domain()).unwrap();
    let mut follower = Follower {
        dial: Direct(Dialer::new(identity(&authority, &Role::User)), hello.relay),
        ledger: Ledger::new(Want {
            process: ProcessKey {
                namespace: NAMESPACE.to_owned(),
                name: NAME.to_owned(),
                uid: String::new(),
            },
            follow: true,
            ..Want::default()
        }),
        sink: Stdout,
        progress: (),
        unknown_until: Instant::now() + Duration::from_secs(10),
    };
    follower.run().await.unwrap();
}
