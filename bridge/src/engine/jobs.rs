//! What the engine has in hand: each job is one message, or one result, on its way through the API server and the broker.

use std::sync::Arc;
use std::time::Duration;

use kube::ResourceExt as _;
use remoteprocess_api::RemoteProcess;
use remoteprocess_api::names::ANNOTATION_REPLY_TO;

use crate::kubernetes::{ApiError, Created, Kubernetes};
use crate::message::Message;
use crate::outcome;
use crate::source::{Publisher, Receipt, SourceError};

/// When a message that could not be handled is delivered again.
const AGAIN: Duration = Duration::from_secs(1);

/// A message whose process is created.
pub(super) struct Intake {
    pub(super) process: RemoteProcess,
    pub(super) message: Message,
    pub(super) receipt: Box<dyn Receipt>,
}

/// How a message was settled.
pub(super) enum Settled {
    /// It has a process with its ConfigMap, and the broker knows.
    Acknowledged,
    /// The same, and the broker will be told at the end.
    Kept(Box<dyn Receipt>),
    /// It can never become a process.
    Refused { dead_lettered: bool },
    /// The API server did not do its part; the message comes again.
    PutBack(ApiError),
    /// The broker did not do its part; the message comes again.
    Lost(SourceError),
}

/// The result of a process that was sent.
pub(super) struct Sent {
    pub(super) process: Arc<RemoteProcess>,
    pub(super) result: Result<bool, SendError>,
}

/// Why a result could not be sent.
#[derive(Debug, thiserror::Error)]
pub(super) enum SendError {
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error(transparent)]
    Api(#[from] ApiError),
}

/// Step 1 of a message: its process. One at a time, in the order of the broker.
pub(super) async fn create(kubernetes: Kubernetes, intake: Intake) -> (Intake, Result<Created, ApiError>) {
    let created = kubernetes.create(&intake.process).await;
    (intake, created)
}

/// Step 2: the ConfigMap with the message, then the broker is told.
pub(super) async fn settle(
    kubernetes: Kubernetes,
    publisher: Arc<dyn Publisher>,
    intake: Intake,
    process: RemoteProcess,
    keep: bool,
) -> Settled {
    let Intake { message, receipt, .. } = intake;
    match kubernetes.ensure_config_map(&process, &message).await {
        // The payload is in the ConfigMap, and not kept in memory any longer.
        Ok(()) if keep => Settled::Kept(receipt),
        Ok(()) => acknowledged(receipt.acknowledge(&process.name_any()).await),
        Err(error @ ApiError::Invalid(_)) => {
            // The process would wait forever for its message.
            let uid = process.uid().unwrap_or_default();
            if let Err(error) = kubernetes.delete(&process.name_any(), &uid).await {
                return put_back(receipt, error).await;
            }
            refuse(publisher, message, receipt, error.to_string()).await
        }
        Err(error) => put_back(receipt, error).await,
    }
}

/// Tells the broker about a message whose process has ended.
pub(super) async fn settle_ended(receipt: Box<dyn Receipt>, process: RemoteProcess, rejects_failures: bool) -> Settled {
    let failure = outcome::failure(&process).filter(|_| rejects_failures);
    let told = match (failure, outcome::result(&process)) {
        (Some(reason), _) => receipt.reject(&reason).await,
        (None, Some(event)) => receipt.answer(&process.name_any(), &event).await,
        (None, None) => receipt.acknowledge(&process.name_any()).await,
    };
    acknowledged(told)
}

/// Tells the broker about a kept message whose result was sent. `failure`: and whose process failed, without another
/// dead-letter address.
pub(super) async fn settle_kept(receipt: Box<dyn Receipt>, process: String, failure: Option<String>) -> Settled {
    let told = match failure {
        Some(reason) => receipt.reject(&reason).await,
        None => receipt.acknowledge(&process).await,
    };
    acknowledged(told)
}

/// Tells the broker about a message whose process is known to run.
pub(super) async fn settle_running(receipt: Box<dyn Receipt>, process: String) -> Settled {
    acknowledged(receipt.acknowledge(&process).await)
}

fn acknowledged(told: Result<(), SourceError>) -> Settled {
    told.map_or_else(Settled::Lost, |()| Settled::Acknowledged)
}

/// Puts a message back that the API server does not take now.
pub(super) async fn put_back(receipt: Box<dyn Receipt>, error: ApiError) -> Settled {
    // If the broker does not hear it, it delivers the message again all the same.
    let _ = receipt.put_back(AGAIN, error.reason().into()).await;
    Settled::PutBack(error)
}

/// Puts a kept message back whose process was deleted before it had ended.
pub(super) async fn put_back_deleted(receipt: Box<dyn Receipt>) -> Settled {
    acknowledged(receipt.put_back(AGAIN, "its process was deleted").await)
}

/// Makes a message a dead letter, or lets the broker do that.
pub(super) async fn refuse(
    publisher: Arc<dyn Publisher>,
    message: Message,
    receipt: Box<dyn Receipt>,
    reason: String,
) -> Settled {
    let told = match publisher.dead_letter(&message, &reason).await {
        Ok(true) => receipt.acknowledge("").await.map(|()| true),
        Ok(false) => receipt.reject(&reason).await.map(|()| false),
        Err(error) => {
            let _ = receipt.put_back(AGAIN, &error.message).await;
            Err(error)
        }
    };
    match told {
        Ok(dead_lettered) => Settled::Refused { dead_lettered },
        Err(error) => Settled::Lost(error),
    }
}

/// Sends the result of a process, and its message to the dead letters if it failed; then notes that in the process.
pub(super) async fn send(kubernetes: Kubernetes, publisher: Arc<dyn Publisher>, process: Arc<RemoteProcess>) -> Sent {
    let result = send_all(&kubernetes, &*publisher, &process).await;
    Sent { process, result }
}

/// Returns whether a dead letter was sent.
async fn send_all(
    kubernetes: &Kubernetes,
    publisher: &dyn Publisher,
    process: &RemoteProcess,
) -> Result<bool, SendError> {
    // Read before anything is sent: while the API server is away, nothing is sent again and again.
    let failed = match outcome::failure(process) {
        // Without the ConfigMap, which a user has deleted, there is no message any more.
        Some(reason) => kubernetes.message_of(process).await?.map(|message| (message, reason)),
        None => None,
    };
    let to = process.annotations().get(ANNOTATION_REPLY_TO).cloned();
    if let (Some(to), Some(event)) = (to.or_else(|| publisher.default_reply()), outcome::result(process)) {
        publisher.reply(&to, &event).await?;
    }
    let mut dead_lettered = false;
    if let Some((message, reason)) = failed {
        dead_lettered = publisher.dead_letter(&message, &reason).await?;
    }
    kubernetes.mark_sent(process).await?;
    Ok(dead_lettered)
}
