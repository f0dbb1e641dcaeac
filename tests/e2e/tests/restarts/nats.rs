//! A real NATS server with JetStream, where pods reach it: at the address of the node, which is this machine.

use std::net::TcpListener;
use std::time::Duration;

use anyhow::Result;
use async_nats::jetstream::{self, stream};
use remoteprocess_e2e::{Program, Running, node_address};
use serde_json::Value;
use tempfile::TempDir;
use tokio::runtime::Runtime;

/// The server, and a connection to it.
pub(crate) struct Nats {
    /// Where bridges reach it.
    pub(crate) url: String,
    /// Runs what talks to it.
    pub(crate) runtime: Runtime,
    /// The connection.
    pub(crate) context: jetstream::Context,
    arguments: Vec<String>,
    program: String,
    server: Option<Running>,
    _data: TempDir,
}

impl Nats {
    /// Starts `program`.
    pub(crate) fn start(program: &str) -> Result<Self> {
        let address = node_address()?;
        let port = TcpListener::bind((address.as_str(), 0))?.local_addr()?.port();
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

    /// Kills the server, and starts it again with what it has stored.
    pub(crate) fn restart(&mut self) -> Result<()> {
        drop(self.server.take());
        self.server = Some(serve(&self.program, &self.arguments)?);
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

fn serve(program: &str, arguments: &[String]) -> Result<Running> {
    let program = Program::new(program, arguments).within(Duration::from_secs(900));
    let mut server = program.start()?;
    server.wait_for_stderr("Server is ready")?;
    Ok(server)
}
