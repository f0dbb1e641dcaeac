//! What the operator publishes for its clients: its CAs, its trust domain, and the address of the relay.

use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use remoteprocess_api::names;
use remoteprocess_tls::{Role, TrustDomain};

use crate::cluster::{Cluster, Rule};
use crate::dial::DialError;

/// What the operator publishes for its clients.
#[derive(Clone, Debug)]
pub struct Trust {
    /// The CAs, PEM.
    pub bundle: String,
    /// The domain of all roles.
    pub domain: TrustDomain,
    /// The published address, if there is one.
    pub server: Option<String>,
    /// Where machines log in, in the cluster.
    pub login: Option<String>,
}

impl Trust {
    /// The name in the certificate of the relay.
    #[must_use]
    pub fn relay_name(&self) -> String {
        Role::Operator.server_name(&self.domain).unwrap_or_default()
    }

    /// Reads the ConfigMap of the installation.
    ///
    /// # Errors
    /// It is not there, may not be read, or does not say what it must.
    pub async fn read(cluster: &Cluster) -> Result<Self, DialError> {
        let namespace = &cluster.operator_namespace;
        let api: Api<ConfigMap> = Api::namespaced(cluster.client.clone(), namespace);
        let found = api.get_opt(names::CONNECT_CONFIG_MAP).await.map_err(|error| {
            cluster.dial_error(
                &error,
                &Rule::connect("", "configmaps", "get"),
                "read where the relay is",
            )
        })?;
        let data = found.and_then(|map| map.data).unwrap_or_default();
        let value = |key: &str| {
            data.get(key)
                .map(|value| value.trim())
                .filter(|value| !value.is_empty())
        };
        let (Some(bundle), Some(domain)) = (value(names::CONNECT_CA), value(names::CONNECT_TRUST_DOMAIN)) else {
            return Err(DialError::Missing(format!(
                "no RemoteProcess operator is ready in namespace {namespace} (it has no ConfigMap {} yet). Install it, \
                 or name its namespace by --operator-namespace or RPROC_OPERATOR_NAMESPACE",
                names::CONNECT_CONFIG_MAP
            )));
        };
        let domain = domain.parse().map_err(|error| {
            DialError::Refused(format!(
                "ConfigMap {} in {namespace}: {error}",
                names::CONNECT_CONFIG_MAP
            ))
        })?;
        Ok(Self {
            bundle: bundle.to_owned(),
            domain,
            server: value(names::CONNECT_SERVER).map(str::to_owned),
            login: value(names::CONNECT_LOGIN).map(str::to_owned),
        })
    }
}
