//! Talks to the API server through `kubectl proxy`: no program has to start for a request, and none competes with what is
//! measured.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, ensure};
use remoteprocess_e2e::{Running, kubectl};
use rustix::process::Signal;
use serde_json::Value;

const JSON: &str = "application/json";

/// A proxy that runs until it is dropped.
pub(crate) struct Proxy {
    /// In a mutex only because threads share the proxy.
    running: Mutex<Running>,
    address: SocketAddr,
}

impl Proxy {
    /// Starts it on a free port.
    pub(crate) fn start() -> Result<Self> {
        let mut running = kubectl(["proxy", "--port=0"]).start()?;
        // "Starting to serve on 127.0.0.1:41234"
        running.wait_for_bytes(30)?;
        let said = running.said();
        let address = said.split_whitespace().last().unwrap_or_default();
        let address = address
            .parse()
            .with_context(|| format!("kubectl proxy says {said:?}"))?;
        Ok(Self {
            running: Mutex::new(running),
            address,
        })
    }

    /// Creates an object below this path of the API; returns when the API server has answered.
    pub(crate) fn create(&self, path: &str, object: &Value) -> Result<()> {
        self.ask("POST", path, JSON, &object.to_string()).map(drop)
    }

    /// Merges a patch into the object at this path.
    pub(crate) fn merge(&self, path: &str, patch: &Value) -> Result<()> {
        self.ask("PATCH", path, "application/merge-patch+json", &patch.to_string())
            .map(drop)
    }

    /// Deletes what is at this path, at most as much as the API server does in one request.
    pub(crate) fn delete(&self, path: &str) -> Result<()> {
        self.ask("DELETE", path, JSON, "").map(drop)
    }

    /// What is at this path.
    pub(crate) fn get(&self, path: &str) -> Result<Value> {
        Ok(serde_json::from_str(&self.ask("GET", path, JSON, "")?)?)
    }

    /// The objects below this path of the API.
    pub(crate) fn list(&self, path: &str) -> Result<Vec<Value>> {
        let mut list = self.get(path)?;
        Ok(list["items"].as_array_mut().map(std::mem::take).unwrap_or_default())
    }

    /// The events of a watch at this path, one line of JSON each, with the metadata of the objects alone. Returns when the
    /// API server watches. The stream is for ending the watch.
    pub(crate) fn watch(&self, path: &str) -> Result<(TcpStream, impl Iterator<Item = String> + use<>)> {
        let accept = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1";
        let stream = self.send("GET", path, JSON, accept, "")?;
        let mut lines = BufReader::new(stream.try_clone()?).lines().map_while(Result::ok);
        let status = lines.next().unwrap_or_default();
        ensure!(status.contains(" 200"), "watch of {path}: {status}");
        lines.by_ref().find(String::is_empty);
        Ok((stream, lines))
    }

    fn ask(&self, method: &str, path: &str, kind: &str, body: &str) -> Result<String> {
        let mut answer = String::new();
        self.send(method, path, kind, JSON, body)?.read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_default();
        let status = head.lines().next().unwrap_or_default();
        ensure!(status.contains(" 20"), "{method} {path}: {status} {body}");
        Ok(body.to_owned())
    }

    /// One request of HTTP/1.0, whose answer has no chunks.
    fn send(&self, method: &str, path: &str, kind: &str, accept: &str, body: &str) -> Result<TcpStream> {
        let mut stream = TcpStream::connect(self.address)?;
        stream.set_nodelay(true)?;
        let head = format!(
            "{method} {path} HTTP/1.0\r\nHost: {}\r\nAccept: {accept}\r\nContent-Type: {kind}\r\n\
             Content-Length: {}\r\n\r\n",
            self.address,
            body.len()
        );
        stream.write_all((head + body).as_bytes())?;
        Ok(stream)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let running = self.running.get_mut().unwrap_or_else(PoisonError::into_inner);
        let _ = running.signal(Signal::TERM);
    }
}
