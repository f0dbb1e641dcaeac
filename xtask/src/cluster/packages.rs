//! Programs from packages of the Linux distribution.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail};

use crate::exec;
use crate::steps::step;

/// Debian package, and a file that proves that it is installed.
const PACKAGES: [(&str, &str); 8] = [
    ("runc", "/usr/sbin/runc"),
    ("containernetworking-plugins", "/usr/lib/cni/bridge"),
    ("iptables", "/usr/sbin/iptables"),
    ("conntrack", "/usr/sbin/conntrack"),
    ("socat", "/usr/bin/socat"),
    ("busybox-static", "/bin/busybox"),
    ("musl-tools", "/usr/bin/musl-gcc"),
    // The entrypoint's tests compare it with this one.
    ("tini", "/usr/bin/tini"),
];

/// Installs missing packages if possible; otherwise says which to install.
pub(super) fn ensure() -> Result<()> {
    install(&PACKAGES)
}

/// The same for these packages, each with a file that proves that it is installed.
pub(crate) fn install(packages: &[(&str, &str)]) -> Result<()> {
    let missing: Vec<&str> = packages
        .iter()
        .filter(|(package, proof)| !is_there(package, proof))
        .map(|(package, _)| *package)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let install = format!("apt-get install -y --no-install-recommends {}", missing.join(" "));
    if !rustix::process::getuid().is_root() || !Path::new("/usr/bin/apt-get").exists() {
        bail!("missing on this machine: {}; on Debian: {install}", missing.join(", "));
    }
    step(&format!("install {}", missing.join(", ")), || {
        exec::output(Command::new("apt-get").args(["update", "-qq"]))?;
        let mut apt = Command::new("apt-get");
        apt.args(["install", "-y", "-qq", "--no-install-recommends"])
            .args(&missing);
        exec::output(apt.env("DEBIAN_FRONTEND", "noninteractive"))?;
        Ok(())
    })
}

fn is_there(package: &str, proof: &str) -> bool {
    // The package `busybox` has the same file, linked dynamically: ldd(1) fails only for a static program.
    let is_other = package == "busybox-static" && exec::succeeds(Command::new("ldd").arg(proof));
    Path::new(proof).exists() && !is_other
}
