//! How much processes have written, and how fast, as the relay has it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use remoteprocess_api::RemoteProcess;
use remoteprocess_client::{Cluster, Dial, Relay};
use remoteprocess_proto::PROTOCOL;
use remoteprocess_proto::v1::output_frame::Frame;
use remoteprocess_proto::v1::relay_client::RelayClient;
use remoteprocess_proto::v1::{ProcessKey, WatchOutputRequest};
use tokio::time::{Instant, timeout};
use tonic::transport::Channel;

/// Time limit for one question to the relay.
const LIMIT: Duration = Duration::from_secs(10);
/// Questions to the relay at a time.
const AT_ONCE: usize = 16;

/// Bytes written so far, and in a second, by uid.
pub(super) type Rates = HashMap<String, (u64, Option<u64>)>;
/// Bytes written so far, and when that was asked, by uid.
type Positions = HashMap<String, (u64, Instant)>;

/// A connection to the relay, and what it said last.
pub(super) struct Written {
    relay: Relay,
    client: Option<RelayClient<Channel>>,
    last: Positions,
}

impl Written {
    /// Nothing has been asked so far.
    pub(super) fn new(cluster: Arc<Cluster>) -> Self {
        Self {
            relay: Relay::new(cluster),
            client: None,
            last: Positions::new(),
        }
    }

    /// Asks about these processes. The rate is that since the last time: the first answer has none. Those about which
    /// the relay does not answer are missing.
    ///
    /// # Errors
    /// A sentence: the relay cannot be reached, or refuses all.
    pub(super) async fn ask(&mut self, objects: &[RemoteProcess]) -> Result<Rates, String> {
        if objects.is_empty() {
            self.last.clear();
            return Ok(Rates::new());
        }
        let now = self.positions(objects).await?;
        let rates = rates(&self.last, &now);
        self.last = now;
        Ok(rates)
    }

    async fn positions(&mut self, objects: &[RemoteProcess]) -> Result<Positions, String> {
        // The certificate of a connection expires, and its replica may be gone: then the next connection is asked.
        if let Some(client) = self.client.take()
            && let Ok(found) = positions(&client, objects).await
        {
            self.client = Some(client);
            return Ok(found);
        }
        let channel = self.relay.dial().await.map_err(|error| error.to_string())?;
        let client = RelayClient::new(channel);
        let found = positions(&client, objects).await?;
        self.client = Some(client);
        Ok(found)
    }
}

fn rates(earlier: &Positions, later: &Positions) -> Rates {
    let rate = |(uid, (bytes, at)): (&String, &(u64, Instant))| {
        let rate = earlier
            .get(uid)
            .and_then(|(before, then)| per_second(*before, *bytes, *at - *then));
        (uid.clone(), (*bytes, rate))
    };
    later.iter().map(rate).collect()
}

/// Bytes per second. `None` if another attempt has begun in the meantime, or no time has passed.
fn per_second(earlier: u64, later: u64, time: Duration) -> Option<u64> {
    let bytes = later.checked_sub(earlier)?;
    (!time.is_zero()).then(|| (bytes as f64 / time.as_secs_f64()).round() as u64)
}

/// How much the processes have written, and when that was asked. Those about which the relay does not answer are
/// missing. Fails if it refuses all.
async fn positions(client: &RelayClient<Channel>, objects: &[RemoteProcess]) -> Result<Positions, String> {
    let ask = |object: &RemoteProcess| {
        let metadata = object.metadata.clone();
        let uid = metadata.uid.unwrap_or_default();
        let key = ProcessKey {
            namespace: metadata.namespace.unwrap_or_default(),
            name: metadata.name.unwrap_or_default(),
            uid: uid.clone(),
        };
        let client = client.clone();
        async move { (uid, position(client, key).await) }
    };
    let asked: Vec<_> = objects.iter().map(ask).collect();
    let answers: Vec<_> = futures::stream::iter(asked).buffer_unordered(AT_ONCE).collect().await;
    let mut found = Positions::new();
    let mut why = None;
    for (uid, answer) in answers {
        match answer {
            Ok(bytes) => _ = found.insert(uid, (bytes, Instant::now())),
            Err(error) => why = Some(error),
        }
    }
    match why {
        Some(why) if found.is_empty() => Err(why),
        _ => Ok(found),
    }
}

/// The bytes of both streams of the current attempt: where its last line ends.
async fn position(mut client: RelayClient<Channel>, process: ProcessKey) -> Result<u64, String> {
    let request = WatchOutputRequest {
        protocol: PROTOCOL,
        process: Some(process),
        tail_lines: Some(0),
        ..WatchOutputRequest::default()
    };
    let asked = async {
        let mut frames = client.watch_output(request).await?.into_inner();
        while let Some(frame) = frames.message().await? {
            if let Some(Frame::Heartbeat(heartbeat)) = frame.frame
                && let Some(offsets) = heartbeat.offsets
            {
                return Ok(offsets.stdout + offsets.stderr);
            }
        }
        Err(tonic::Status::unavailable("the relay does not know the position"))
    };
    match timeout(LIMIT, asked).await {
        Ok(answer) => answer.map_err(|status| remoteprocess_client::retry::cause(&status)),
        Err(_) => Err("the relay does not answer".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_the_difference_over_the_time() {
        assert_eq!(per_second(1000, 5000, Duration::from_secs(2)), Some(2000));
        assert_eq!(per_second(5000, 10, Duration::from_secs(2)), None, "another attempt");
        assert_eq!(per_second(1, 2, Duration::ZERO), None);
        let now = Instant::now();
        let earlier = Positions::from([("a".to_owned(), (0, now))]);
        let at = now + Duration::from_secs(2);
        let later = Positions::from([("a".to_owned(), (4, at)), ("b".to_owned(), (9, at))]);
        let expected = [("a".to_owned(), (4, Some(2))), ("b".to_owned(), (9, None))];
        assert_eq!(rates(&earlier, &later), Rates::from(expected));
    }
}
