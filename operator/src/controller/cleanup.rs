//! Deletes pods that have no business any more. Everything else is left to the
//! garbage collector by owner references: there is no finalizer.

use k8s_openapi::api::core::v1::Pod;
use kube::Client;
use kube::api::{Api, DeleteParams, Preconditions};

use super::error::Error;

/// Deletes the pod of this name if it still is the one with this UID.
///
/// # Errors
/// [`Error::Cleanup`] when the API server did not do it.
pub async fn delete_pod(client: &Client, namespace: &str, name: &str, uid: &str) -> Result<(), Error> {
    let api: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let params = DeleteParams::default().preconditions(Preconditions {
        uid: Some(uid.to_owned()),
        resource_version: None,
    });
    match api.delete(name, &params).await {
        Ok(_) => Ok(()),
        // Gone, or another pod by now.
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
        Err(error) => Err(Error::Cleanup(error)),
    }
}
