//! Reads the metrics of the operator, through the API server.

use k8s_openapi::api::core::v1::Pod;
use remoteprocess_api::names;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::cluster::Cluster;
use crate::dial::DialError;
use crate::forward;

/// Most bytes of one answer.
const MAX_ANSWER: u64 = 4 << 20;

/// The names of all ready pods of the operator, and their metrics in the text format of OpenMetrics.
///
/// # Errors
/// The pods cannot be listed, none is ready, or one cannot be reached or answers with an error.
pub async fn read(cluster: &Cluster) -> Result<Vec<(String, String)>, DialError> {
    let mut found = Vec::new();
    for pod in forward::pods(cluster)
        .await?
        .iter()
        .filter(|pod| forward::is_ready(pod))
    {
        let name = pod.metadata.name.clone().unwrap_or_default();
        let text = of(cluster, pod, &name).await?;
        found.push((name, text));
    }
    match found.is_empty() {
        true => Err(forward::none_is_ready(cluster)),
        false => Ok(found),
    }
}

async fn of(cluster: &Cluster, pod: &Pod, name: &str) -> Result<String, DialError> {
    let failed = |why: String| DialError::Unreachable(format!("cannot read the metrics of {name}: {why}"));
    let port = forward::port(pod, "admin", names::ADMIN_PORT);
    let mut stream = forward::to(cluster, name, port).await?;
    let mut answer = Vec::new();
    // HTTP/1.0: the answer ends with the connection, and comes in one piece.
    let request = format!("GET /metrics HTTP/1.0\r\nHost: {name}\r\n\r\n");
    let asked = async {
        stream.write_all(request.as_bytes()).await?;
        stream.take(MAX_ANSWER).read_to_end(&mut answer).await
    };
    asked.await.map_err(|error| failed(error.to_string()))?;
    body(&answer).map_err(failed)
}

/// The body of an answer, if it is a success.
fn body(answer: &[u8]) -> Result<String, String> {
    let text = String::from_utf8_lossy(answer);
    let (head, body) = text.split_once("\r\n\r\n").ok_or("no answer")?;
    let status = head.lines().next().unwrap_or_default();
    match status.split(' ').nth(1) {
        Some("200") => Ok(body.to_owned()),
        _ => Err(format!("answer {status:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_success_has_metrics() {
        assert_eq!(body(b"HTTP/1.0 200 OK\r\nA: b\r\n\r\nx 1\n").as_deref(), Ok("x 1\n"));
        assert!(body(b"HTTP/1.0 503 Busy\r\n\r\n").unwrap_err().contains("503"));
        assert!(body(b"").is_err());
    }
}
