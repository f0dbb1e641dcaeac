//! A real NATS server with JetStream, where pods reach it: at the address of the node, which is this machine.

use std::time::Duration;

use anyhow::{Result, ensure};
use async_nats::HeaderMap;
use async_nats::jetstream::consumer::Info;
use async_nats::jetstream::{self, stream};
use futures::TryStreamExt as _;
use remoteprocess_e2e::{Program, Running, node_address};
use remoteprocess_ports::free_port;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::runtime::Runtime;

use super::broker::Broker;

/// The server, and a connection to it.
pub(crate) struct Nats {
    /// Where bridges reach it.
    pub(crate) url: String,
    runtime: Runtime,
    context: jetstream::Context,
    arguments: Vec<String>,
    program: String,
    server: Option<Running>,
    /// Results that were read.
    read: usize,
    _data: TempDir,
}

impl Nats {
    /// Starts `program`.
    pub(crate) fn start(program: &str) -> Result<Self> {
        let address = node_address()?;
        let port = free_port();
        let data = TempDir::new()?;
        let arguments = vec![
            "--jetstream".to_owned(),
            format!("--store_dir={}", data.path().display()),
            format!("--addr={address}"),
            format!("--port={port}"),
        ];
        let server = serve(program, &arguments)?;
        let runtime = Runtime::new()?;
        let url = format!("nats://{address}:{port}");
        let context = runtime.block_on(async { anyhow::Ok(jetstream::new(async_nats::connect(&url).await?)) })?;
        Ok(Self {
            url,
            runtime,
            context,
            arguments,
            program: program.to_owned(),
            server: Some(server),
            read: 0,
            _data: data,
        })
    }

    /// Makes the stream `SUBJECT`, in upper case, for a subject. It drops messages with an id that it has seen within
    /// `duplicate_window`; zero: two minutes.
    pub(crate) fn add(&self, subject: &str, duplicate_window: Duration) -> Result<()> {
        let config = stream::Config {
            name: subject.to_uppercase(),
            subjects: vec![subject.to_owned()],
            duplicate_window,
            ..stream::Config::default()
        };
        self.runtime.block_on(self.context.create_stream(config))?;
        Ok(())
    }

    /// How many messages a stream has.
    pub(crate) fn count(&self, stream: &str) -> Result<u64> {
        self.runtime.block_on(async {
            let mut stream = self.context.get_stream(stream).await?;
            Ok(stream.info().await?.state.messages)
        })
    }

    /// The messages of a stream after the first `known`, in the order in which they arrived.
    pub(crate) fn messages(&self, stream: &str, known: usize) -> Result<Vec<Value>> {
        self.runtime.block_on(async {
            let mut stream = self.context.get_stream(stream).await?;
            let last = stream.info().await?.state.last_sequence;
            let mut messages = Vec::new();
            for sequence in known as u64 + 1..=last {
                let message = stream.get_raw_message(sequence).await?;
                messages.push(serde_json::from_slice(&message.payload)?);
            }
            Ok(messages)
        })
    }
}

impl Nats {
    /// The bridge's consumer.
    fn consumer(&self) -> Result<Info> {
        self.runtime.block_on(async {
            let stream = self.context.get_stream("ORDERS").await?;
            let mut consumers: Vec<_> = stream.consumers().try_collect().await?;
            ensure!(consumers.len() == 1, "{consumers:?}");
            Ok(consumers.remove(0))
        })
    }
}

/// The streams `ORDERS`, `RESULTS` and `LETTERS` must have been added.
impl Broker for Nats {
    const NAME: &'static str = "NATS";
    const KEEPS_ORDER: bool = true;
    const DROPS_REPETITIONS: bool = true;

    fn source(&self) -> Value {
        json!({"nats": {
            "servers": [self.url], "stream": "ORDERS", "resultSubject": "results", "deadLetterSubject": "letters",
        }})
    }

    fn order(&mut self, name: &str) -> Result<()> {
        let mut headers = HeaderMap::new();
        headers.insert("order-id", format!("order-{name}").as_str());
        let payload = format!("order {name}");
        self.runtime.block_on(async {
            let published = self.context.publish_with_headers("orders", headers, payload.into());
            published.await?.await?;
            Ok(())
        })
    }

    fn new_results(&mut self) -> Result<Vec<Value>> {
        let results = self.messages("RESULTS", self.read)?;
        self.read += results.len();
        Ok(results)
    }

    fn waiting(&mut self) -> Result<Option<u64>> {
        Ok(Some(self.consumer()?.num_pending))
    }

    fn unsettled(&mut self) -> Result<u64> {
        let consumer = self.consumer()?;
        Ok(consumer.num_pending + consumer.num_ack_pending as u64)
    }

    fn restart(&mut self) -> Result<()> {
        drop(self.server.take());
        self.server = Some(serve(&self.program, &self.arguments)?);
        Ok(())
    }
}

fn serve(program: &str, arguments: &[String]) -> Result<Running> {
    let program = Program::new(program, arguments).within(Duration::from_secs(900));
    let mut server = program.start()?;
    server.wait_for_stderr("Server is ready")?;
    Ok(server)
}
