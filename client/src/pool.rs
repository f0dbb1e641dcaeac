//! One connection to the relay for several streams.

use std::sync::Arc;

use tokio::sync::Mutex;
use tokio::time::timeout;
use tonic::transport::Channel;

use crate::cluster::Cluster;
use crate::dial::{DIAL_LIMIT, Dial, DialError};
use crate::relay::Relay;

/// One connection for the streams of several processes. The first stream that finds it broken opens the next one.
#[derive(Clone)]
pub struct Shared {
    line: Arc<Mutex<Line>>,
    /// The connection that this stream used last; 0 for none.
    seen: u64,
    is_discredited: bool,
}

struct Line {
    relay: Relay,
    channel: Option<Channel>,
    number: u64,
}

impl Shared {
    /// A pool without a connection so far.
    #[must_use]
    pub fn new(cluster: Arc<Cluster>) -> Self {
        let line = Line {
            relay: Relay::new(cluster),
            channel: None,
            number: 0,
        };
        Self {
            line: Arc::new(Mutex::new(line)),
            seen: 0,
            is_discredited: false,
        }
    }
}

impl Shared {
    /// The connection with the next certificate: the first stream that asks opens it, the others get the same one.
    async fn renew(&mut self) -> Option<Channel> {
        let mut line = self.line.lock().await;
        if line.number == self.seen {
            let channel = line.relay.renew().await?;
            line.channel = Some(channel);
            line.number += 1;
        }
        self.seen = line.number;
        line.channel.clone()
    }
}

impl Dial for Shared {
    async fn dial(&mut self) -> Result<Channel, DialError> {
        let mut line = self.line.lock().await;
        let is_current = line.number == self.seen;
        if std::mem::take(&mut self.is_discredited) && is_current {
            line.relay.discredit();
        }
        let known = line.channel.clone().filter(|_| !is_current);
        let channel = match known {
            Some(channel) => channel,
            None => {
                line.channel = None;
                let channel = line.relay.dial().await?;
                line.number += 1;
                line.channel.insert(channel).clone()
            }
        };
        self.seen = line.number;
        Ok(channel)
    }

    fn discredit(&mut self) {
        self.is_discredited = true;
    }

    fn renewed(&self) -> impl Future<Output = (Self, Channel)> + Send + 'static {
        let mut next = self.clone();
        async move {
            let current = next.line.lock().await.relay.clone();
            current.renewal_is_due().await;
            loop {
                if let Ok(Some(channel)) = timeout(DIAL_LIMIT, next.renew()).await {
                    return (next, channel);
                }
                tokio::time::sleep(current.renewal_pause()).await;
            }
        }
    }
}
