//! Talks to the API server through `kubectl proxy`: no program has to start for a request, and none competes with what is
//! measured.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use anyhow::{Context, Result, ensure};
use remoteprocess_e2e::{Namespace, Running};
use rustix::process::Signal;
use serde_json::Value;

/// A proxy that runs until it is dropped.
pub(crate) struct Proxy {
    running: Running,
    address: SocketAddr,
}

impl Proxy {
    /// Starts it on a free port.
    pub(crate) fn start(namespace: &Namespace) -> Result<Self> {
        let mut running = namespace.kubectl(&["proxy", "--port=0"]).start()?;
        // "Starting to serve on 127.0.0.1:41234"
        running.wait_for_bytes(30)?;
        let said = running.said();
        let address = said.split_whitespace().last().unwrap_or_default();
        let address = address
            .parse()
            .with_context(|| format!("kubectl proxy says {said:?}"))?;
        Ok(Self { running, address })
    }

    /// Creates an object below this path of the API; returns when the API server has answered.
    pub(crate) fn create(&self, path: &str, object: &Value) -> Result<()> {
        self.ask("POST", path, &object.to_string()).map(drop)
    }

    /// The objects below this path of the API.
    pub(crate) fn list(&self, path: &str) -> Result<Vec<Value>> {
        let mut list: Value = serde_json::from_str(&self.ask("GET", path, "")?)?;
        Ok(list["items"].as_array_mut().map(std::mem::take).unwrap_or_default())
    }

    /// One request of HTTP/1.0, whose answer has no chunks.
    fn ask(&self, method: &str, path: &str, body: &str) -> Result<String> {
        let mut stream = TcpStream::connect(self.address)?;
        stream.set_nodelay(true)?;
        let head = format!(
            "{method} {path} HTTP/1.0\r\nHost: {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            self.address,
            body.len()
        );
        stream.write_all((head + body).as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_default();
        let status = head.lines().next().unwrap_or_default();
        ensure!(status.contains(" 20"), "{method} {path}: {status} {body}");
        Ok(body.to_owned())
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.running.signal(Signal::TERM);
    }
}
