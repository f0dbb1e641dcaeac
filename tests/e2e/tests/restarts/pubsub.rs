//! The emulator of Google Pub/Sub. It listens on loopback, because its REST API calls its gRPC API there, and keeps everything
//! in its memory. Pods reach it through what passes their connections on, and that is what a test can kill.

use std::collections::BTreeSet;
use std::env;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use remoteprocess_e2e::{is_long, node_address, until, until_some};
use remoteprocess_ports::free_port;
use remoteprocess_tls::install_crypto_provider;
use reqwest::{Client, Method};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::task::{JoinHandle, JoinSet};

use super::broker::{Broker, Server};

/// Where the package `google-cloud-cli-pubsub-emulator` of Google's Cloud SDK has it.
const EMULATOR: &str = "/usr/lib/google-cloud-sdk/platform/pubsub-emulator/bin/cloud-pubsub-emulator";
/// Seconds after which a message that was taken and not acknowledged is delivered again; for the test itself, the most
/// that there is.
const DEADLINES: [(&str, u64); 2] = [("orders", 10), ("results", 600)];
/// Messages of one answer.
const PAGE: usize = 100;

/// The emulator, and what passes connections on to it.
pub(crate) struct PubSub {
    /// Its own address.
    emulator: String,
    /// Where pods reach it.
    address: String,
    runtime: Runtime,
    client: Client,
    passing: Option<JoinHandle<()>>,
    /// Results that were read, by the ids that the service gave them.
    known: BTreeSet<String>,
    _server: Server,
    _folder: TempDir,
}

impl PubSub {
    /// The program, if this machine has it.
    pub(crate) fn program() -> Option<String> {
        let program = env::var("RPROC_PUBSUB_EMULATOR").unwrap_or_else(|_| EMULATOR.to_owned());
        Path::new(&program).exists().then_some(program)
    }

    /// Starts `program`, and makes a topic and a subscription for orders, and for results.
    pub(crate) fn start(program: &str) -> Result<Self> {
        let (port, folder) = (free_port(), TempDir::new()?);
        let emulator = format!("127.0.0.1:{port}");
        let mut command = Command::new(program);
        command
            .args(["--host=127.0.0.1", &format!("--port={port}")])
            .env("JAVA_OPTS", "-Xmx256m -XX:TieredStopAtLevel=1");
        let log = folder.path().join("log");
        let server = Server::start(&mut command, &log, std::slice::from_ref(&emulator))?;
        install_crypto_provider();
        let mut pubsub = Self {
            emulator,
            address: format!("{}:{}", node_address()?, free_port()),
            runtime: Runtime::new()?,
            client: Client::builder().no_proxy().tls_certs_only([]).build()?,
            passing: None,
            known: BTreeSet::new(),
            _server: server,
            _folder: folder,
        };
        for (name, deadline) in DEADLINES {
            let subscription = json!({"topic": format!("projects/p1/topics/{name}"), "ackDeadlineSeconds": deadline});
            for (path, body) in [("topics", json!({})), ("subscriptions", subscription)] {
                // The port is open before the emulator answers.
                until("an emulator that answers", Duration::from_secs(60), || {
                    Ok(pubsub.call(Method::PUT, &format!("{path}/{name}"), &body).is_ok())
                })?;
            }
        }
        pubsub.pass_on()?;
        Ok(pubsub)
    }

    fn call(&self, method: Method, path: &str, body: &Value) -> Result<Value> {
        let url = format!("http://{}/v1/projects/p1/{path}", self.emulator);
        let request = self
            .client
            .request(method, url)
            .header("content-type", "application/json");
        self.runtime.block_on(async {
            let answer = request.body(body.to_string()).send().await?;
            let answer = answer.error_for_status()?.bytes().await?;
            Ok(serde_json::from_slice(&answer)?)
        })
    }

    /// Begins to pass connections on.
    fn pass_on(&mut self) -> Result<()> {
        let listener = self.runtime.block_on(TcpListener::bind(&self.address))?;
        let to = self.emulator.clone();
        self.passing = Some(self.runtime.spawn(pass_on(listener, to)));
        Ok(())
    }

    /// Takes some messages of a subscription.
    fn pull(&self, subscription: &str) -> Result<Vec<Value>> {
        let body = json!({"maxMessages": PAGE, "returnImmediately": true});
        let mut answer = self.call(Method::POST, &format!("subscriptions/{subscription}:pull"), &body)?;
        match answer["receivedMessages"].take() {
            Value::Array(messages) => Ok(messages),
            _ => Ok(Vec::new()),
        }
    }

    fn acknowledge(&self, subscription: &str, messages: &[Value]) -> Result<()> {
        let ids: Vec<_> = messages.iter().map(|message| &message["ackId"]).collect();
        let path = format!("subscriptions/{subscription}:acknowledge");
        self.call(Method::POST, &path, &json!({"ackIds": ids}))?;
        Ok(())
    }
}

/// Passes connections on until it is dropped, and they with it.
async fn pass_on(listener: TcpListener, to: String) {
    let mut connections = JoinSet::new();
    while let Ok((mut pod, _)) = listener.accept().await {
        let to = to.clone();
        connections.spawn(async move {
            if let Ok(mut emulator) = TcpStream::connect(to).await {
                // A connection ends when one of the two wants that.
                let _ = copy_bidirectional(&mut pod, &mut emulator).await;
            }
        });
        while connections.try_join_next().is_some() {}
    }
}

impl Broker for PubSub {
    const NAME: &'static str = "Pub/Sub";
    const KEEPS_ORDER: bool = false;
    const DROPS_REPETITIONS: bool = false;

    fn source(&self) -> Value {
        let endpoint = format!("http://{}", self.address);
        json!({"pubsub": {"project": "p1", "subscription": "orders", "endpoint": endpoint, "resultTopic": "results"}})
    }

    fn order(&mut self, name: &str) -> Result<()> {
        let data = BASE64_STANDARD.encode(format!("order {name}"));
        let message = json!({"data": data, "attributes": {"order-id": format!("order-{name}")}});
        self.call(Method::POST, "topics/orders:publish", &json!({"messages": [message]}))?;
        Ok(())
    }

    fn new_results(&mut self) -> Result<Vec<Value>> {
        let mut results = Vec::new();
        loop {
            let messages = self.pull("results")?;
            if messages.is_empty() {
                return Ok(results);
            }
            for received in &messages {
                let message = &received["message"];
                let id = message["messageId"].as_str().context("an id")?.to_owned();
                if self.known.insert(id) {
                    let data = BASE64_STANDARD.decode(message["data"].as_str().context("data")?)?;
                    results.push(serde_json::from_slice(&data)?);
                }
            }
            self.acknowledge("results", &messages)?;
        }
    }

    fn waiting(&mut self) -> Result<Option<u64>> {
        Ok(None)
    }

    /// In the large sizes, what a bridge had is waited for.
    fn unsettled(&mut self) -> Result<u64> {
        if !is_long() {
            return Ok(self.pull("orders")?.len() as u64);
        }
        let (_, deadline) = DEADLINES[0];
        let late = until_some("an order", Duration::from_secs(deadline + 5), || {
            let orders = self.pull("orders")?;
            Ok((!orders.is_empty()).then_some(orders.len()))
        });
        Ok(late.unwrap_or_default() as u64)
    }

    /// Cuts all connections of pods.
    fn restart(&mut self) -> Result<()> {
        if let Some(passing) = self.passing.take() {
            passing.abort();
            // It was cancelled: the listener is closed.
            let _ = self.runtime.block_on(passing);
        }
        self.pass_on()
    }
}
