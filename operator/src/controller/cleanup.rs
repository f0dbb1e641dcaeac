//! Deletes pods that are no longer needed, and objects whose time to live is over. The garbage collector deletes
//! everything else by owner references: there is no finalizer.

use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, DeleteParams, Preconditions};
use kube::{Client, ResourceExt};
use remoteprocess_api::RemoteProcess;

use super::error::Error;

/// Deletes the pod of this name if it still has this UID.
///
/// # Errors
/// [`Error::Cleanup`] when the API server did not do it.
pub(crate) async fn delete_pod(client: &Client, namespace: &str, name: &str, uid: &str) -> Result<(), Error> {
    let api: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let params = DeleteParams::default().preconditions(Preconditions {
        uid: Some(uid.to_owned()),
        resource_version: None,
    });
    match api.delete(name, &params).await {
        Ok(_) => Ok(()),
        // It is gone, or is another pod by now.
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
        Err(error) => Err(Error::Cleanup(error)),
    }
}

/// Deletes a process whose time to live is over, if it has not changed in the meantime. Its pods follow.
///
/// # Errors
/// [`Error::Conflict`] when it has changed, [`Error::Cleanup`] when the API server did not do it.
pub(crate) async fn delete_process(client: &Client, process: &RemoteProcess) -> Result<(), Error> {
    let api: Api<RemoteProcess> = Api::namespaced(client.clone(), &process.namespace().unwrap_or_default());
    let params = DeleteParams::background().preconditions(Preconditions {
        uid: process.uid(),
        resource_version: process.resource_version(),
    });
    match api.delete(&process.name_any(), &params).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 409 => Err(Error::Conflict(status.message)),
        Err(error) => Err(Error::Cleanup(error)),
    }
}
