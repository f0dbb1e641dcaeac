//! Asks the cluster's DNS one question, as a pod does.

use std::net::UdpSocket;
use std::time::Duration;

use anyhow::{Result, bail};

use super::config::DNS_IP;

/// Succeeds when `kubernetes.default.svc.cluster.local` has an address.
pub(super) fn ask() -> Result<()> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.set_read_timeout(Some(Duration::from_secs(1)))?;
    socket.send_to(&question("kubernetes.default.svc.cluster.local"), (DNS_IP, 53))?;
    let mut answer = [0; 512];
    let length = socket.recv(&mut answer)?;
    // RFC 1035, 4.1.1: the low four bits of byte 3 are the response code, bytes 6 and 7 the number of answers.
    if length < 12 || answer[3] & 0x0f != 0 || answer[6..8] == [0, 0] {
        bail!("CoreDNS does not know the Service kubernetes");
    }
    Ok(())
}

fn question(name: &str) -> Vec<u8> {
    let mut packet = vec![0x52, 0x50, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        packet.push(u8::try_from(label.len()).expect("a label has at most 63 bytes"));
        packet.extend_from_slice(label.as_bytes());
    }
    // End of the name, type A, class IN.
    packet.extend_from_slice(&[0, 0, 1, 0, 1]);
    packet
}
