//! A webhook: each request that is signed, or has the token, is a message.

mod answer;
mod authentic;
mod connection;
mod request;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::future::BoxFuture;
use kube::ResourceExt as _;
use remoteprocess_api::ProcessTrigger;
use remoteprocess_api::bridge::BridgeReason;
use remoteprocess_api::trigger::HttpSource;
use tokio::net::TcpListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::task::AbortHandle;

use super::{DeadLetters, Delivery, Publisher, Receipt, Settings, Source, SourceError, no_dead_letters};
use crate::message::Message;
use crate::outcome::CloudEvent;

use answer::Answer;
use authentic::Authenticator;

/// Most requests that wait for the engine.
const QUEUE: usize = 64;
/// Most requests that wait for the result of their process.
const MAX_WAITERS: usize = 1000;
/// Most KiB of the bodies that are in memory: from the time that they are read until the engine has decided.
const MEMORY: usize = 16 * 1024;
/// The address of a result that a request waits for.
const WAITER: &str = "http";

/// A webhook that is being served.
struct Http {
    requests: mpsc::Receiver<Delivery>,
    /// Keeps the queue open: requests come from connections and from `Publisher::send`.
    shared: Arc<Shared>,
    serving: AbortHandle,
    publisher: Arc<HttpPublisher>,
}

/// What all connections share.
struct Shared {
    namespace: String,
    max_bytes: usize,
    /// Name of the header with the id, in lower case.
    id_header: Option<String>,
    authenticator: Mutex<Arc<Authenticator>>,
    queue: mpsc::Sender<Delivery>,
    /// A permit for each KiB.
    memory: Arc<Semaphore>,
    refused: AtomicU64,
    hold: Mutex<Option<BridgeReason>>,
    waiters: Mutex<HashMap<String, Vec<oneshot::Sender<Vec<u8>>>>>,
}

struct HttpPublisher(Arc<Shared>);

/// Listens, and serves until the source is dropped.
pub(super) async fn open(
    trigger: &ProcessTrigger,
    source: &HttpSource,
    settings: &Settings,
) -> Result<Box<dyn Source>, SourceError> {
    let authenticator = Authenticator::read(&settings.secrets).await?;
    let tls = match source.tls_secret_name {
        Some(_) => Some(connection::acceptor(&settings.secrets).await?),
        None => None,
    };
    let address = settings.webhook;
    let listener = TcpListener::bind(address).await;
    let listener =
        listener.map_err(|error| SourceError::unreachable(format!("cannot listen on {address}: {error}")))?;
    let (queue, requests) = mpsc::channel(QUEUE);
    let shared = Arc::new(Shared {
        namespace: trigger.namespace().unwrap_or_default(),
        max_bytes: usize::try_from(trigger.spec.max_payload_bytes()).unwrap_or(usize::MAX),
        id_header: trigger
            .spec
            .message
            .as_ref()
            .and_then(|message| message.id_header.as_ref())
            .map(|name| name.to_ascii_lowercase()),
        authenticator: Mutex::new(Arc::new(authenticator)),
        queue,
        memory: Arc::new(Semaphore::new(MEMORY)),
        refused: AtomicU64::new(0),
        hold: Mutex::new(None),
        waiters: Mutex::default(),
    });
    let serving = tokio::spawn(connection::serve(
        listener,
        tls,
        shared.clone(),
        settings.secrets.clone(),
    ));
    Ok(Box::new(Http {
        requests,
        serving: serving.abort_handle(),
        publisher: Arc::new(HttpPublisher(shared.clone())),
        shared,
    }))
}

impl Drop for Http {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Shared {
    fn authenticator(&self) -> Arc<Authenticator> {
        lock(&self.authenticator).clone()
    }

    fn held(&self) -> Option<BridgeReason> {
        *lock(&self.hold)
    }

    fn refuse(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    /// A receiver for the result of the process; `None` if too many wait.
    fn wait_for(&self, process: &str) -> Option<oneshot::Receiver<Vec<u8>>> {
        let mut waiters = lock(&self.waiters);
        waiters.retain(|_, senders| {
            senders.retain(|sender| !sender.is_closed());
            !senders.is_empty()
        });
        if waiters.values().map(Vec::len).sum::<usize>() >= MAX_WAITERS {
            return None;
        }
        let (sender, receiver) = oneshot::channel();
        waiters.entry(process.to_owned()).or_default().push(sender);
        Some(receiver)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // No holder can panic in the middle of a change.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Source for Http {
    fn next(&mut self) -> BoxFuture<'_, Result<Delivery, SourceError>> {
        Box::pin(async {
            let request = self.requests.recv().await;
            request.ok_or_else(|| SourceError::unreachable("the webhook has ended"))
        })
    }

    fn lag(&mut self) -> BoxFuture<'_, Option<u64>> {
        Box::pin(async { None })
    }

    fn publisher(&self) -> Arc<dyn Publisher> {
        self.publisher.clone()
    }

    fn hold(&mut self, reason: Option<BridgeReason>) {
        *lock(&self.shared.hold) = reason;
        let Some(reason) = reason else { return };
        while let Ok(delivery) = self.requests.try_recv() {
            // The answer is given at once; nothing is to be waited for.
            drop(delivery.receipt.put_back(answer::RETRY_AFTER, reason.into()));
        }
    }

    fn keeps_messages(&self) -> bool {
        false
    }

    fn refused(&mut self) -> u64 {
        self.shared.refused.swap(0, Ordering::Relaxed)
    }
}

/// Answers one request, which may be gone.
struct HttpReceipt {
    shared: Arc<Shared>,
    answer: oneshot::Sender<Answer>,
    waits: bool,
    /// The room of the body. It is free again when the engine has decided, also if the sender has gone before.
    _room: Option<OwnedSemaphorePermit>,
}

impl HttpReceipt {
    fn give(self, answer: Answer) -> BoxFuture<'static, Result<(), SourceError>> {
        // If the sender has gone, it will send the message again, with the same id.
        let _ = self.answer.send(answer);
        Box::pin(async { Ok(()) })
    }
}

impl Receipt for HttpReceipt {
    fn acknowledge(self: Box<Self>, process: &str) -> BoxFuture<'static, Result<(), SourceError>> {
        let result = if self.waits {
            self.shared.wait_for(process)
        } else {
            None
        };
        let process = process.to_owned();
        self.give(Answer::Accepted { process, result })
    }

    fn answer(self: Box<Self>, process: &str, result: &CloudEvent) -> BoxFuture<'static, Result<(), SourceError>> {
        if !self.waits {
            return self.acknowledge(process);
        }
        self.give(Answer::Ended(result.to_json()))
    }

    fn put_back(self: Box<Self>, delay: Duration, reason: &str) -> BoxFuture<'static, Result<(), SourceError>> {
        let is_limit = reason == <&str>::from(BridgeReason::Limited);
        let reason = reason.to_owned();
        self.give(Answer::Later {
            delay,
            reason,
            is_limit,
        })
    }

    fn reject(self: Box<Self>, reason: &str) -> BoxFuture<'static, Result<(), SourceError>> {
        self.shared.refuse();
        self.give(Answer::Refused(reason.to_owned()))
    }

    fn extend(&mut self) -> BoxFuture<'_, Result<(), SourceError>> {
        Box::pin(async { Ok(()) })
    }
}

impl Publisher for HttpPublisher {
    fn reply<'a>(&'a self, _to: &'a str, event: &'a CloudEvent) -> BoxFuture<'a, Result<(), SourceError>> {
        let waiters = lock(&self.0.waiters).remove(&event.subject).unwrap_or_default();
        for waiter in waiters {
            let _ = waiter.send(event.to_json());
        }
        Box::pin(async { Ok(()) })
    }

    fn dead_letter<'a>(&'a self, _message: &'a Message, _reason: &'a str) -> BoxFuture<'a, Result<bool, SourceError>> {
        Box::pin(async { Ok(false) })
    }

    fn dead_letters<'a>(&'a self, _trigger: &'a str) -> BoxFuture<'a, Result<Box<dyn DeadLetters>, SourceError>> {
        let sentence = "a webhook keeps no dead letters: the sender sends the message again, with another id";
        Box::pin(async { Err(no_dead_letters(sentence)) })
    }

    /// Requests wait for the process, not for an address: a second one with the same id may wait where the first did not.
    fn default_reply(&self) -> Option<String> {
        Some(WAITER.to_owned())
    }

    fn send<'a>(&'a self, message: &'a Message) -> BoxFuture<'a, Result<(), SourceError>> {
        let (answer, answered) = oneshot::channel();
        let receipt = HttpReceipt {
            shared: self.0.clone(),
            answer,
            waits: false,
            _room: None,
        };
        let delivery = Delivery {
            message: message.clone(),
            receipt: Box::new(receipt),
        };
        Box::pin(async move {
            let queued = self.0.queue.try_send(delivery);
            queued.map_err(|_| SourceError::unreachable("too many requests wait"))?;
            match answered.await {
                Ok(Answer::Accepted { .. } | Answer::Ended(_)) => Ok(()),
                Ok(Answer::Later { reason, .. } | Answer::Refused(reason)) => Err(SourceError::unreachable(reason)),
                Err(_) => Err(SourceError::unreachable("the webhook has ended")),
            }
        })
    }
}
