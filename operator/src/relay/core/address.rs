//! Checks that an agent is dialed only at its own pod.

use std::net::{IpAddr, SocketAddr};

use super::{Core, start::safe};
use crate::relay::attempt::Subject;
use crate::relay::error::{Code, Error};

impl Core {
    /// Refuses an address that is not the agent's own: neither the one from which the agent calls, nor, if the network
    /// hides that, one that the API server knows for its pod. Otherwise an agent could make the operator connect to
    /// anything.
    pub(super) async fn check_address(
        &self,
        subject: &Subject,
        named: SocketAddr,
        source: Option<IpAddr>,
    ) -> Result<(), Error> {
        let named = named.ip().to_canonical();
        if source.is_some_and(|source| source.to_canonical() == named) {
            return Ok(());
        }
        let known = self
            .recorder
            .pod_addresses(subject)
            .await
            .map_err(|error| safe(&error))?;
        if known.contains(&named) {
            Ok(())
        } else if known.is_empty() {
            Err(Error::unavailable("the address of the pod is not known yet; try again"))
        } else {
            Err(Error::new(
                Code::PermissionDenied,
                "address is not an address of the agent's pod",
            ))
        }
    }
}
