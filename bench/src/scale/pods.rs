//! When each pod comes.

use std::collections::HashMap;
use std::net::{Shutdown, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use remoteprocess_e2e::until_some;
use serde_json::Value;

use super::LABEL;
use crate::proxy::Proxy;

/// Watches pods until it is dropped.
pub(super) struct Arrivals {
    seen: Arc<Mutex<HashMap<String, Instant>>>,
    stream: TcpStream,
}

impl Arrivals {
    /// Begins to watch the pods with this value of [`LABEL`]. Returns when the API server watches.
    pub(super) fn watch(proxy: &Proxy, namespace: &str, purpose: &str) -> Result<Self> {
        let selector = format!("watch=true&timeoutSeconds=1800&labelSelector={LABEL}%3D{purpose}");
        let (stream, lines) = proxy.watch(&format!("/api/v1/namespaces/{namespace}/pods?{selector}"))?;
        let seen: Arc<Mutex<HashMap<String, Instant>>> = Arc::default();
        let noted = seen.clone();
        thread::spawn(move || {
            for line in lines {
                let now = Instant::now();
                if let Some(owner) = owner_of_new(&line) {
                    noted.lock().expect("no holder panics").entry(owner).or_insert(now);
                }
            }
        });
        Ok(Self { seen, stream })
    }

    /// When the first pod of each object was reported, by the name of the object, as soon as there are `count`.
    pub(super) fn wait_for(&self, count: usize, deadline: Duration) -> Result<HashMap<String, Instant>> {
        until_some(&format!("{count} pods"), deadline, || {
            let seen = self.seen.lock().expect("no holder panics");
            Ok((seen.len() >= count).then(|| seen.clone()))
        })
    }
}

impl Drop for Arrivals {
    fn drop(&mut self) {
        // Ends the thread.
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}

/// The name of the owner of a pod that an event reports as new.
fn owner_of_new(line: &str) -> Option<String> {
    let event: Value = serde_json::from_str(line).ok()?;
    let owner = &event["object"]["metadata"]["ownerReferences"][0]["name"];
    (event["type"] == "ADDED").then_some(())?;
    Some(owner.as_str()?.to_owned())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_new_pods_count() {
        let event = |kind: &str| {
            let metadata = json!({"name": "hello-1", "ownerReferences": [{"name": "hello"}]});
            json!({"type": kind, "object": {"metadata": metadata}}).to_string()
        };
        assert_eq!(owner_of_new(&event("ADDED")).as_deref(), Some("hello"));
        assert_eq!(owner_of_new(&event("MODIFIED")), None);
        assert_eq!(owner_of_new("not JSON"), None);
    }
}
