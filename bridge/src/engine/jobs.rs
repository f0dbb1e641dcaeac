//! What the engine has in hand: each job is one message, or one result, on its way through the API server and the broker.

use std::sync::Arc;
use std::time::Duration;

use kube::ResourceExt as _;
use remoteprocess_api::RemoteProcess;
use remoteprocess_api::names::{ANNOTATION_REPLY_TO, LABEL_TRIGGER};

use super::gate::AGAIN;
use crate::kubernetes::{ApiError, Created, Kubernetes};
use crate::message::{self, Message};
use crate::outcome;
use crate::source::{Publisher, Receipt, SourceError};

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
    /// It can never become a process, and the dead-letter address does not take it; the message comes again.
    Stuck(SourceError),
    /// The API server did not do its part; the message comes again.
    PutBack(ApiError),
    /// The broker did not do its part; the message comes again.
    Lost(SourceError),
}

/// The result of a process that was sent.
pub(super) struct Sent {
    pub(super) process: Arc<RemoteProcess>,
    /// What is done, even if the rest failed.
    pub(super) progress: Progress,
    pub(super) result: Result<(), SendError>,
}

/// What the broker has confirmed for a process that has ended. It is not sent again if a later step fails.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Progress {
    replied: bool,
    /// Whether a dead letter was sent; `None`: that is not decided.
    dead_lettered: Option<bool>,
}

impl Progress {
    pub(super) fn is_dead_lettered(self) -> bool {
        self.dead_lettered.unwrap_or_default()
    }
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
                return put_back(receipt, error, AGAIN).await;
            }
            let letter = message.into_dead_letter(&trigger_of(&process), None);
            refuse(publisher, letter, receipt, error.to_string()).await
        }
        Err(error) => put_back(receipt, error, AGAIN).await,
    }
}

/// Tells the broker about a message whose process has ended. One that failed and has no ConfigMap did not run with the
/// message, because a bridge died in between, and left no dead letter: the message becomes one.
pub(super) async fn settle_ended(
    kubernetes: Kubernetes,
    publisher: Arc<dyn Publisher>,
    intake: Intake,
    process: RemoteProcess,
    rejects_failures: bool,
) -> Settled {
    let Intake { message, receipt, .. } = intake;
    let failure = outcome::failure(&process);
    if let Some(failure) = &failure {
        match kubernetes.has_message(&process).await {
            Ok(true) => {}
            Ok(false) => {
                let letter = dead_letter_of(&process, message);
                return refuse(
                    publisher,
                    letter,
                    receipt,
                    format!("{failure}; it did not have its message"),
                )
                .await;
            }
            Err(error) => return put_back(receipt, error, AGAIN).await,
        }
    }
    let told = match (failure.filter(|_| rejects_failures), outcome::result(&process)) {
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

/// Puts a message back that the API server does not take now; it comes again after `delay`.
pub(super) async fn put_back(receipt: Box<dyn Receipt>, error: ApiError, delay: Duration) -> Settled {
    // If the broker does not hear it, it delivers the message again all the same.
    let _ = receipt.put_back(delay, error.reason().into()).await;
    Settled::PutBack(error)
}

/// Puts a kept message back whose process was deleted before it had ended.
pub(super) async fn put_back_deleted(receipt: Box<dyn Receipt>) -> Settled {
    acknowledged(receipt.put_back(AGAIN, "its process was deleted").await)
}

/// The trigger of a process, as in the header of a dead letter.
fn trigger_of(process: &RemoteProcess) -> String {
    let name = process.labels().get(LABEL_TRIGGER).map(String::as_str);
    message::full_name(process.namespace().as_deref(), name.unwrap_or_default())
}

/// The message of a process that failed, as a dead letter.
fn dead_letter_of(process: &RemoteProcess, message: Message) -> Message {
    message.into_dead_letter(&trigger_of(process), process.uid().as_deref())
}

/// Makes a message, which is a dead letter already, one at the broker, or lets the broker do that.
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
            let sentence =
                format!("a message cannot become a process ({reason}), and its dead letter is not taken: {error}");
            return Settled::Stuck(SourceError::new(error.reason, sentence));
        }
    };
    match told {
        Ok(dead_lettered) => Settled::Refused { dead_lettered },
        Err(error) => Settled::Lost(error),
    }
}

/// Sends the result of a process, and its message to the dead letters if it failed; then notes that in the process. Continues
/// after `progress`.
pub(super) async fn send(
    kubernetes: Kubernetes,
    publisher: Arc<dyn Publisher>,
    process: Arc<RemoteProcess>,
    mut progress: Progress,
) -> Sent {
    let result = send_all(&kubernetes, &*publisher, &process, &mut progress).await;
    Sent {
        process,
        progress,
        result,
    }
}

async fn send_all(
    kubernetes: &Kubernetes,
    publisher: &dyn Publisher,
    process: &RemoteProcess,
    progress: &mut Progress,
) -> Result<(), SendError> {
    // Read before anything is sent: while the API server is away, nothing is sent again and again.
    let failed = match outcome::failure(process).filter(|_| progress.dead_lettered.is_none()) {
        // Without the ConfigMap, which a user has deleted, there is no message any more.
        Some(reason) => kubernetes.message_of(process).await?.map(|message| (message, reason)),
        None => None,
    };
    let to = process.annotations().get(ANNOTATION_REPLY_TO).cloned();
    let to = to.or_else(|| publisher.default_reply()).filter(|_| !progress.replied);
    if let (Some(to), Some(event)) = (to, outcome::result(process)) {
        publisher.reply(&to, &event).await?;
    }
    progress.replied = true;
    if let Some((message, reason)) = failed {
        let letter = dead_letter_of(process, message);
        progress.dead_lettered = Some(publisher.dead_letter(&letter, &reason).await?);
    }
    kubernetes.mark_sent(process).await?;
    Ok(())
}
