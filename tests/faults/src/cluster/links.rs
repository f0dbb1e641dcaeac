//! Each connection between two parts of the installation is cut and delayed.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use remoteprocess_e2e::{delete_operator_pods, kubectl, seq, sha256, wait_for_operator};

use super::cuts::{LAST, expect, in_parallel};
use super::{relay, scenario};
use crate::proxy::{Harm, Proxy, Target};

/// The agents' port, at each pod.
const AGENT: u16 = 20443;
/// Marks the rules of this scenario.
const COMMENT: &str = "remoteprocess-faults";

/// What pods send to a port passes a proxy on the node until this is dropped.
struct Harmed {
    called: &'static str,
    rule: Vec<String>,
    proxy: Proxy,
}

impl Harmed {
    /// Connections that pods open to `port`, of this address or of any.
    fn new(called: &'static str, address: Option<&str>, port: u16, cut_after: (u64, u64), seed: u64) -> Result<Self> {
        let harm = Harm {
            cut_after: Some(cut_after.0..=cut_after.1),
            delay: Duration::from_millis(100),
            ..Harm::default()
        };
        let proxy = Proxy::start(Target::Original, harm, seed)?;
        let (port, to) = (port.to_string(), proxy.address().port().to_string());
        let mut rule: Vec<String> = address
            .map(|address| ["-d", address].map(str::to_owned))
            .into_iter()
            .flatten()
            .collect();
        let rest = [
            "-p",
            "tcp",
            "--dport",
            &port,
            "-m",
            "comment",
            "--comment",
            COMMENT,
            "-j",
            "REDIRECT",
            "--to-ports",
            &to,
        ];
        rule.extend(rest.map(str::to_owned));
        iptables("-I", &rule)?;
        Ok(Self { called, rule, proxy })
    }
}

impl Drop for Harmed {
    fn drop(&mut self) {
        if let Err(error) = iptables("-D", &self.rule) {
            println!("the lines of {} stay harmed: {error:#}", self.called);
        }
    }
}

/// Removes what a killed run has left: a redirection to a proxy that no longer exists.
fn clean_up() -> Result<()> {
    let listed = Command::new("iptables")
        .args(["-w", "-t", "nat", "-S", "PREROUTING"])
        .output()
        .context("cannot run iptables")?;
    let listed = String::from_utf8_lossy(&listed.stdout);
    let left = listed.lines().filter(|rule| rule.contains(COMMENT));
    left.filter_map(|rule| rule.strip_prefix("-A PREROUTING "))
        .try_for_each(|rule| {
            let rule: Vec<String> = rule.split(' ').map(str::to_owned).collect();
            iptables("-D", &rule)
        })
}

/// Adds (`-I`) or removes (`-D`) a rule for traffic from pods.
fn iptables(verb: &str, rule: &[String]) -> Result<()> {
    let mut command = Command::new("iptables");
    command.args(["-w", "-t", "nat", verb, "PREROUTING"]).args(rule);
    let output = command.output().context("cannot run iptables")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {}", said.trim());
    Ok(())
}

/// `seq 1 2000000` with every line between the parts delayed by 100 ms and cut: relay to agent every 1 to 5 MB, agent to
/// relay every 1 to 6 kB, operator to API server every 0.5 to 2 MB. 6 runs, or 60.
///
/// # Errors
/// When one of the runs did not bring exactly what `seq` wrote, or the lines were not cut.
pub fn links(long: bool, seed: u64) -> Result<()> {
    clean_up()?;
    scenario("links", |namespace| {
        let count = if long { 60 } else { 6 };
        let sum = sha256(&seq(1, LAST));
        let server = relay()?;
        let address = server.ip().to_string();
        let api = kubectl(["get", "service", "kubernetes", "--output=jsonpath={.spec.clusterIP}"]).succeed()?;
        let harmed = [
            Harmed::new("relay to agent", None, AGENT, (1_000_000, 5_000_000), seed)?,
            Harmed::new(
                "agent to relay",
                Some(&address),
                server.port() + 1,
                (1_000, 24_000),
                seed,
            )?,
            Harmed::new("operator to API server", Some(&api), 443, (500_000, 2_000_000), seed)?,
        ];
        // So that it opens its connections again.
        delete_operator_pods()?;
        wait_for_operator()?;
        let failed = in_parallel(count, |index| {
            expect(namespace, &server.to_string(), &format!("seq-{index}"), &sum)
        });
        let cuts: Vec<_> = harmed
            .iter()
            .map(|line| format!("{} {} of {}", line.called, line.proxy.cuts(), line.proxy.connections()))
            .collect();
        let said = format!(
            "{} of {count} runs arrived whole; connections cut: {}",
            count - failed.len(),
            cuts.join(", ")
        );
        ensure!(failed.is_empty(), "{said}; {failed:#?}");
        ensure!(
            harmed[0].proxy.cuts() as usize >= count,
            "{said}: the agents' lines were not cut"
        );
        Ok(said)
    })
}
