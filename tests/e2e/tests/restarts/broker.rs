//! What a broker must do for the tests of triggers.

use std::fs::{self, File};
use std::net::TcpStream;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use remoteprocess_e2e::until;
use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::Value;

/// A broker of the test, at an address of this machine that pods reach. It has what holds orders, which a trigger takes, and what
/// holds their results.
pub(crate) trait Broker {
    /// Its name for people.
    const NAME: &'static str;
    /// Whether it delivers messages in the order in which they were sent.
    const KEEPS_ORDER: bool;
    /// Whether it drops a result that is sent again with the same id.
    const DROPS_REPETITIONS: bool;

    /// The source of a trigger that takes the orders.
    fn source(&self) -> Value;

    /// Sends the payload `order NAME` with the header `order-id: order-NAME`, and returns when it is stored.
    fn order(&mut self, name: &str) -> Result<()>;

    /// The results that have arrived since the last call, in the order in which they arrived.
    fn new_results(&mut self) -> Result<Vec<Value>>;

    /// Orders that nobody has taken; `None` if the broker does not tell.
    fn waiting(&mut self) -> Result<Option<u64>>;

    /// Orders that are not acknowledged. There must be no bridge any more.
    fn unsettled(&mut self) -> Result<u64>;

    /// Kills it, and starts it again with what it has stored.
    fn restart(&mut self) -> Result<()>;
}

/// A server with all that it has started. Dropping this kills them.
pub(crate) struct Server(Child);

impl Server {
    /// Starts it, and returns when it listens at each of these addresses.
    ///
    /// # Errors
    /// It ends, or does not listen within 90 seconds; with what it has said, which is written to the file `log`.
    pub(crate) fn start(command: &mut Command, log: &Path, addresses: &[String]) -> Result<Self> {
        let file = File::create(log)?;
        command
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .process_group(0);
        let program = command.get_program().display().to_string();
        let mut server = Self(command.spawn().context(program)?);
        let listens = until("a broker that listens", Duration::from_secs(90), || {
            if server.0.try_wait()?.is_some() {
                bail!("it has ended");
            }
            Ok(addresses.iter().all(|address| TcpStream::connect(address).is_ok()))
        });
        listens.with_context(|| fs::read_to_string(log).unwrap_or_default())?;
        Ok(server)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // If it has failed, it has already ended.
        let _ = kill_process_group(Pid::from_child(&self.0), Signal::KILL);
        let _ = self.0.wait();
    }
}
