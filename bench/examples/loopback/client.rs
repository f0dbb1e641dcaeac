//! The client: the follower of `rproc` and its writer.

use remoteprocess_cli::follow::{Dial, DialError, Follower, Ledger, Narrator, Want};
use remoteprocess_cli::output::{Control, Form, Output};
use remoteprocess_proto::v1::ProcessKey;
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

/// Follows until the process ends.
pub fn run(hello: &str) {
    let hello: Hello = serde_json::from_str(hello).unwrap();
    remoteprocess_cli::runtime().unwrap().block_on(follow(hello));
}

async fn follow(hello: Hello) {
    let authority = Authority::from_pem(&hello.certificate, &hello.key, &trust_domain()).unwrap();
    let output = Output::standard(Form::Bytes { is_stamped: false }, Control::Watched).unwrap();
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
        output: &output,
        narrator: Narrator::new(NAME, true),
        unknown_until: Instant::now() + Duration::from_secs(10),
    };
    follower.run().await.unwrap();
}
