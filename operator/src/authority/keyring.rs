//! The CAs of the installation: the one that signs, the announced one, and the former ones.

use std::time::SystemTime;

use jiff::Timestamp;
use remoteprocess_tls::{Authority, bundle};

use super::{
    Error,
    rotation::{Times, Validity},
};

/// How many former CAs have signed a certificate for the current one. A peer that has missed more rotations than this
/// no longer trusts it.
const CROSSES: usize = 2;

/// The CAs of the installation at one moment. The Secret holds exactly this.
pub(super) struct Keyring {
    /// Signs, and sends `crosses` along.
    pub current: Authority,
    /// Certificates of [`Authority::cross_sign`] for the current CA, by its predecessor and so on, PEM.
    pub crosses: Vec<String>,
    /// Signs after the wait.
    pub next: Option<Next>,
    /// Trusted until their certificates have ended.
    pub former: Vec<Former>,
    /// The last request of an administrator that has led to a rotation.
    pub answered: Option<String>,
}

/// An announced CA.
pub(super) struct Next {
    pub authority: Authority,
    pub announced: SystemTime,
}

/// A CA that no longer signs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Former {
    /// PEM.
    pub certificate: String,
    pub until: SystemTime,
}

impl Keyring {
    /// The first CA alone.
    pub(super) fn first(current: Authority) -> Self {
        Self {
            current,
            crosses: Vec::new(),
            next: None,
            former: Vec::new(),
            answered: None,
        }
    }

    /// All CAs to trust, PEM: each CA itself, and none above it.
    pub(super) fn bundle_pem(&self) -> Result<String, Error> {
        let next = self.next.as_ref().map(|next| next.authority.anchor_pem());
        let former = self.former.iter().map(|former| former.certificate.clone());
        let all: Vec<String> = [self.current.anchor_pem()]
            .into_iter()
            .chain(next)
            .chain(former)
            .collect();
        Ok(bundle(&all.iter().map(String::as_str).collect::<Vec<_>>())?)
    }

    /// For [`super::rotation::step`].
    pub(super) fn times(&self) -> Times {
        let next = self.next.as_ref();
        Times {
            current: validity(&self.current),
            next: next.map(|next| (validity(&next.authority), next.announced)),
            former: self.former.iter().map(|former| former.until).collect(),
        }
    }

    /// Whether a CA is the current or the announced one.
    pub(super) fn has(&self, authority: &Authority) -> bool {
        let anchor = authority.anchor_pem();
        let next = self.next.as_ref().map(|next| next.authority.anchor_pem());
        self.current.anchor_pem() == anchor || next == Some(anchor)
    }

    /// A warning for administrators: the CA is in the last tenth of its life, and no other is announced.
    pub(super) fn warning(&self, now: SystemTime) -> Option<String> {
        let end = self.current.not_after();
        let life = end.duration_since(self.current.not_before()).unwrap_or_default();
        let is_late = self.next.is_none() && end.duration_since(now).unwrap_or_default() < life / 10;
        is_late.then(|| {
            format!(
                "the CA expires at {:.0}, and no other CA is announced; without one, nobody can connect after that",
                timestamp(end)
            )
        })
    }

    /// Signs with the announced CA, and trusts the current one until `until`.
    pub(super) fn switch(&mut self, until: SystemTime) {
        let Some(next) = self.next.take() else { return };
        let former = self.current.anchor_pem();
        match self.current.cross_sign(&next.authority) {
            Ok(cross) => self.crosses.insert(0, cross),
            // No peer trusts an expired CA, and a peer that trusts one with an unsuitable name has had the time to
            // learn the next.
            Err(error) => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "the former CA does not vouch for the next"
                );
                self.crosses.clear();
            }
        }
        self.crosses.truncate(CROSSES);
        self.current = next.authority.with_cross_certificates(&self.crosses.concat());
        self.former.retain(|known| known.certificate != former);
        self.former.push(Former {
            certificate: former,
            until,
        });
    }

    /// Removes former CAs whose time is over.
    pub(super) fn retire(&mut self, now: SystemTime) {
        self.former.retain(|former| now < former.until);
    }

    /// After an administrator has replaced `known` without a rotation: trusts `known` until its certificates have
    /// ended. Returns whether there was anything to do.
    pub(super) fn adopt(&mut self, known: &Self, until: SystemTime) -> bool {
        let anchor = known.current.anchor_pem();
        let is_known = self.has(&known.current) || self.former.iter().any(|former| former.certificate == anchor);
        if !is_known {
            self.former.push(Former {
                certificate: anchor,
                until,
            });
        }
        !is_known
    }
}

fn validity(authority: &Authority) -> Validity {
    Validity {
        not_before: authority.not_before(),
        not_after: authority.not_after(),
    }
}

pub(super) fn timestamp(time: SystemTime) -> Timestamp {
    Timestamp::try_from(time).unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn authority() -> Authority {
        remoteprocess_tls::install_crypto_provider();
        Authority::generate(&"test.local".parse().expect("a domain")).expect("a CA")
    }

    #[test]
    fn each_ca_is_trusted_from_its_announcement_to_its_retirement() {
        let now = SystemTime::now();
        let mut ring = Keyring::first(authority());
        let first = ring.current.anchor_pem();
        ring.next = Some(Next {
            authority: authority(),
            announced: now,
        });
        let second = ring.next.as_ref().expect("announced").authority.anchor_pem();
        assert_eq!(ring.bundle_pem().expect("a bundle"), format!("{first}{second}"));
        ring.switch(now + HOUR);
        assert_eq!(ring.bundle_pem().expect("a bundle"), format!("{second}{first}"));
        ring.retire(now + HOUR);
        assert_eq!(ring.bundle_pem().expect("a bundle"), second);
        assert_eq!(ring.crosses.len(), 1);
    }

    #[test]
    fn a_ca_that_was_replaced_by_hand_is_trusted_on() {
        let now = SystemTime::now();
        let (known, mut found) = (Keyring::first(authority()), Keyring::first(authority()));
        assert!(found.adopt(&known, now + HOUR));
        assert!(
            found
                .bundle_pem()
                .expect("a bundle")
                .contains(&known.current.anchor_pem())
        );
        assert!(!found.adopt(&known, now + HOUR + HOUR), "once");
    }
}
