//! Where CAs come from.

use std::time::Duration;

use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client};
use remoteprocess_tls::{Authority, Identity, Role};

use super::{AuthorityConfig, Error, keyring::Keyring, rotation::Want, secret};

/// Where CAs come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// The operator makes them.
    Own,
    /// Another program keeps the newest one in this Secret: cert-manager, or an administrator.
    Secret(String),
}

impl Source {
    /// The newest CA that another program has made, checked; `None` for [`Source::Own`].
    pub(super) async fn offered(&self, client: &Client, config: &AuthorityConfig) -> Result<Option<Authority>, Error> {
        let Self::Secret(name) = self else { return Ok(None) };
        let secrets: Api<Secret> = Api::namespaced(client.clone(), &config.namespace);
        let secret = secrets
            .get_opt(name)
            .await?
            .ok_or_else(|| Error::NoSource(name.clone()))?;
        let authority = secret::tls_authority(&secret, &config.trust_domain).and_then(checked);
        authority.map(Some).map_err(|error| Error::Source {
            name: name.clone(),
            error: Box::new(error),
        })
    }

    /// The first CA of the installation.
    pub(super) async fn first(&self, client: &Client, config: &AuthorityConfig) -> Result<Authority, Error> {
        match self.offered(client, config).await? {
            Some(offered) => Ok(offered),
            None => Ok(config.generate()?),
        }
    }

    /// Whether a further CA is wanted, when another program offers `offered` and an administrator has asked for `request`.
    pub(super) fn wants(&self, keyring: &Keyring, offered: Option<&Authority>, request: Option<&str>) -> Want {
        let is_asked = request.is_some() && request != keyring.answered.as_deref();
        match (self, offered) {
            (Self::Own, _) if is_asked => Want::Now,
            (Self::Own, _) => Want::OnSchedule,
            (Self::Secret(_), Some(offered)) if !keyring.has(offered) => Want::Now,
            (Self::Secret(_), _) => Want::Never,
        }
    }
}

/// Only what our own verifier accepts may become our CA: rustls refuses name constraints on URIs, for example.
fn checked(authority: Authority) -> Result<Authority, Error> {
    let (chain, key) = authority.issue(&Role::Operator, None, Duration::from_secs(60))?;
    Identity::new(&chain, &key, &authority.anchor_pem(), authority.trust_domain())?;
    Ok(authority)
}
