//! What a `rabbitmq-server` of a test needs so that it shares nothing with another one: folders, ports and a port mapper of its
//! own.

use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::free_port;

/// How long Erlang's port mapper may take to notice that its node is gone.
const MAPPER: Duration = Duration::from_secs(5);

/// The ports of Erlang's own.
#[derive(Clone, Copy, Debug)]
pub struct Erlang {
    mapper: u16,
    distribution: u16,
}

impl Erlang {
    /// Ports that no other caller has.
    #[must_use]
    pub fn reserve() -> Self {
        Self {
            mapper: free_port(),
            distribution: free_port(),
        }
    }

    /// The whole environment of a server, whose data and log are in `folder`, like the files `rabbitmq.conf`, `enabled_plugins` and
    /// `environment`, which must be there.
    #[must_use]
    pub fn environment(&self, folder: &Path) -> [(&'static str, String); 14] {
        let path = |name: &str| folder.join(name).display().to_string();
        [
            (
                "PATH",
                "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned(),
            ),
            ("HOME", path("")),
            ("LANG", "C.UTF-8".to_owned()),
            ("RABBITMQ_NODENAME", format!("test{}@localhost", self.distribution)),
            ("RABBITMQ_MNESIA_BASE", path("data")),
            ("RABBITMQ_LOG_BASE", path("logs")),
            ("RABBITMQ_CONFIG_FILE", path("rabbitmq.conf")),
            ("RABBITMQ_CONF_ENV_FILE", path("environment")),
            ("RABBITMQ_ENABLED_PLUGINS_FILE", path("enabled_plugins")),
            ("RABBITMQ_PID_FILE", path("pid")),
            ("RABBITMQ_DIST_PORT", self.distribution.to_string()),
            ("ERL_EPMD_PORT", self.mapper.to_string()),
            ("ERL_EPMD_ADDRESS", "127.0.0.1".to_owned()),
            // Two schedulers, and no thread that waits in a loop.
            (
                "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS",
                "+S 2:2 +sbwt none -kernel inet_dist_use_interface {127,0,0,1}".to_owned(),
            ),
        ]
    }

    /// Ends the port mapper, which has left the group of its server. It refuses until it has noticed that the server was killed. If
    /// it still does after five seconds, it is left behind: a test that has ended cannot say so.
    pub fn end_mapper(&self) {
        let mut kill = Command::new("epmd");
        kill.arg("-kill").env("ERL_EPMD_PORT", self.mapper.to_string());
        kill.stdout(Stdio::null()).stderr(Stdio::null());
        let begin = Instant::now();
        while kill.status().is_ok_and(|status| !status.success()) && begin.elapsed() < MAPPER {
            sleep(Duration::from_millis(100));
        }
    }
}
