//! A real RabbitMQ, where pods reach it: at the address of the node, which is this machine.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lapin::options::{
    BasicAckOptions, BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Confirmation, Connection, ConnectionProperties};
use remoteprocess_e2e::{node_address, until_some};
use remoteprocess_ports::free_port;
use remoteprocess_ports::rabbitmq::Erlang;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::runtime::Runtime;

use super::broker::{Broker, Server};

/// What the trigger takes from.
const ORDERS: &str = "orders";
/// What the messages name for their results.
const RESULTS: &str = "results";
/// Stored on disk.
const PERSISTENT: u8 = 2;

/// The server, and a connection to it.
pub(crate) struct RabbitMq {
    program: String,
    address: String,
    erlang: Erlang,
    folder: TempDir,
    server: Option<Server>,
    runtime: Runtime,
    /// The connection, until the server is killed.
    link: Option<(Connection, Channel)>,
    /// Ids of the results that were read.
    known: BTreeSet<String>,
}

impl RabbitMq {
    /// Starts `program`, and declares a quorum queue for orders and one for results.
    pub(crate) fn start(program: &str) -> Result<Self> {
        let mut rabbitmq = Self {
            program: program.to_owned(),
            address: format!("{}:{}", node_address()?, free_port()),
            erlang: Erlang::reserve(),
            folder: TempDir::new()?,
            server: None,
            runtime: Runtime::new()?,
            link: None,
            known: BTreeSet::new(),
        };
        // `guest` may log in from pods as well.
        let conf = format!(
            "listeners.tcp.1 = {}\nloopback_users = none\nlog.console = true\nlog.file = false\n",
            rabbitmq.address
        );
        for (name, text) in [
            ("rabbitmq.conf", &*conf),
            ("enabled_plugins", "[].\n"),
            ("environment", ""),
        ] {
            fs::write(rabbitmq.folder.path().join(name), text)?;
        }
        rabbitmq.serve()?;
        for queue in [ORDERS, RESULTS] {
            rabbitmq.declare(queue)?;
        }
        Ok(rabbitmq)
    }

    fn serve(&mut self) -> Result<()> {
        let mut command = Command::new(&self.program);
        command.env_clear().envs(self.erlang.environment(self.folder.path()));
        let log = self.folder.path().join("log");
        self.server = Some(Server::start(&mut command, &log, std::slice::from_ref(&self.address))?);
        // The queues may not be there yet.
        let link = until_some("a server that answers", Duration::from_secs(60), || {
            let connected = self.runtime.block_on(connect(&self.address));
            Ok(connected.ok())
        })?;
        self.link = Some(link);
        Ok(())
    }

    fn channel(&self) -> Result<&Channel> {
        Ok(&self.link.as_ref().context("no connection")?.1)
    }

    fn declare(&self, queue: &str) -> Result<()> {
        let options = QueueDeclareOptions {
            durable: true,
            ..QueueDeclareOptions::default()
        };
        let mut arguments = FieldTable::default();
        arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
        let declared = self.channel()?.queue_declare(queue.into(), options, arguments);
        self.runtime.block_on(declared)?;
        Ok(())
    }

    /// Messages of a queue that nobody has.
    fn ready(&self, queue: &str) -> Result<u64> {
        let options = QueueDeclareOptions {
            passive: true,
            ..QueueDeclareOptions::default()
        };
        let looked = self
            .channel()?
            .queue_declare(queue.into(), options, FieldTable::default());
        Ok(self.runtime.block_on(looked)?.message_count().into())
    }
}

async fn connect(address: &str) -> Result<(Connection, Channel)> {
    let url = format!("amqp://guest:guest@{address}/%2f");
    let connection = Connection::connect(&url, ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    channel.confirm_select(ConfirmSelectOptions::default()).await?;
    Ok((connection, channel))
}

impl Broker for RabbitMq {
    const NAME: &'static str = "RabbitMQ";
    const KEEPS_ORDER: bool = true;
    const DROPS_REPETITIONS: bool = false;

    fn source(&self) -> Value {
        json!({"rabbitmq": {"address": self.address, "queue": ORDERS}})
    }

    fn order(&mut self, name: &str) -> Result<()> {
        let mut headers = FieldTable::default();
        headers.insert("order-id".into(), AMQPValue::LongString(format!("order-{name}").into()));
        let properties = BasicProperties::default()
            .with_delivery_mode(PERSISTENT)
            .with_headers(headers)
            .with_reply_to(RESULTS.into());
        let payload = format!("order {name}");
        let channel = self.channel()?;
        let confirmation = self.runtime.block_on(async {
            let options = BasicPublishOptions::default();
            let published = channel.basic_publish("".into(), ORDERS.into(), options, payload.as_bytes(), properties);
            published.await?.await
        })?;
        ensure!(matches!(confirmation, Confirmation::Ack(None)), "{confirmation:?}");
        Ok(())
    }

    fn new_results(&mut self) -> Result<Vec<Value>> {
        let channel = &self.link.as_ref().context("no connection")?.1;
        let mut results = Vec::new();
        self.runtime.block_on(async {
            let options = BasicGetOptions { no_ack: false };
            while let Some(got) = channel.basic_get(RESULTS.into(), options).await? {
                let result: Value = serde_json::from_slice(&got.data)?;
                let id = result["id"].as_str().context("an id")?.to_owned();
                let is_new = self.known.insert(id);
                // The server may have died before it had the acknowledgement of this test.
                if is_new || !got.redelivered {
                    results.push(result);
                }
                got.delivery.acker.ack(BasicAckOptions::default()).await?;
            }
            Ok(results)
        })
    }

    fn waiting(&mut self) -> Result<Option<u64>> {
        self.ready(ORDERS).map(Some)
    }

    /// What a bridge had is ready again when its connection is gone.
    fn unsettled(&mut self) -> Result<u64> {
        self.ready(ORDERS)
    }

    fn restart(&mut self) -> Result<()> {
        drop((self.link.take(), self.server.take()));
        self.serve()
    }
}

impl Drop for RabbitMq {
    fn drop(&mut self) {
        drop(self.server.take());
        self.erlang.end_mapper();
    }
}
