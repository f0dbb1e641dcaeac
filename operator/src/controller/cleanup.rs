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
/// [`Error::Conflict`] when it has changed, [`Error::Cleanup`] when the API server did not do it.
pub(crate) async fn delete_pod(client: &Client, namespace: &str, name: &str, uid: &str) -> Result<(), Error> {
    let api: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let params = DeleteParams::default().preconditions(Preconditions {
        uid: Some(uid.to_owned()),
        resource_version: None,
    });
    match api.delete(name, &params).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        // Another pod has the name by now, which the next pass sees, or another write came in between.
        Err(kube::Error::Api(status)) if status.code == 409 => Err(Error::Conflict(status.message)),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake_api::{self, Call, refusal};

    #[tokio::test]
    async fn a_deletion_of_a_pod_that_meets_another_write_is_repeated() {
        let client = fake_api::client(|_: Call| refusal(409, "Conflict"));
        let outcome = delete_pod(&client, "default", "hello-1", "u").await;
        assert!(matches!(outcome, Err(Error::Conflict(_))), "{outcome:?}");

        let client = fake_api::client(|_: Call| refusal(404, "NotFound"));
        delete_pod(&client, "default", "hello-1", "u").await.unwrap();
    }
}
