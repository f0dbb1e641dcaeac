//! The bridge of the pods and the rules with which they reach the outside.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use super::config::{BRIDGE, NODE_IP, POD_CIDR};
use crate::exec;

/// Table and rule. The CNI plugin could masquerade too, but leaves one chain for each pod behind when it is killed.
fn rules() -> [(&'static str, Vec<&'static str>); 3] {
    let masquerade = vec!["POSTROUTING", "-s", POD_CIDR, "!", "-d", POD_CIDR, "-j", "MASQUERADE"];
    [
        ("nat", masquerade),
        ("filter", vec!["FORWARD", "-i", BRIDGE, "-j", "ACCEPT"]),
        ("filter", vec!["FORWARD", "-o", BRIDGE, "-j", "ACCEPT"]),
    ]
}

/// Creates the bridge, which has the node's address, and enables forwarding.
pub(super) fn create() -> Result<()> {
    fs::write("/proc/sys/net/ipv4/ip_forward", "1").context("cannot switch forwarding on")?;
    let filter = Path::new("/proc/sys/net/bridge/bridge-nf-call-iptables");
    if !filter.exists() {
        exec::output(Command::new("modprobe").arg("br_netfilter"))?;
    }
    // Without it the answer of a Service's pod to another pod on the bridge bypasses the rules of kube-proxy.
    fs::write(filter, "1").context("cannot let iptables see bridged packets")?;
    let ip = |words: &str| exec::output(Command::new("ip").args(words.split(' ')));
    ip(&format!("link add {BRIDGE} type bridge"))?;
    ip(&format!("address add {NODE_IP}/16 dev {BRIDGE}"))?;
    ip(&format!("link set {BRIDGE} up"))?;
    for (table, rule) in rules() {
        iptables(table, "-A", &rule)?;
    }
    Ok(())
}

/// Removes what [`create`] created, as far as it exists.
pub(super) fn remove() -> Result<()> {
    for (table, rule) in rules() {
        while iptables(table, "-D", &rule).is_ok() {}
    }
    if Path::new("/sys/class/net").join(BRIDGE).exists() {
        exec::output(Command::new("ip").args(["link", "delete", BRIDGE]))?;
    }
    Ok(())
}

fn iptables(table: &str, action: &str, rule: &[&str]) -> Result<String> {
    exec::output(Command::new("iptables").args(["-w", "-t", table, action]).args(rule))
}
