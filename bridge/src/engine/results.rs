//! Results on their way out, and processes whose time is over.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::future::{BoxFuture, join_all};
use futures::stream::FuturesUnordered;
use jiff::Timestamp;
use kube::ResourceExt as _;
use remoteprocess_api::RemoteProcess;
use tokio::time::{Instant, timeout};

use super::Engine;
use super::jobs::{self, Progress, SendError, Sent};
use crate::backoff::Backoff;
use crate::kubernetes::ApiError;
use crate::outcome;
use crate::source::{Receipt, SourceError};
use crate::status::Count;

/// Most results that are sent at the same time.
const MAX_SENDING: usize = 16;
/// Most processes that are deleted at the same time.
const MAX_DELETING: usize = 8;
/// How long a broker may take to note that kept messages are still worked on.
const EXTEND_TIMEOUT: Duration = Duration::from_secs(2);
/// Seconds for which the id of a request is remembered at least: a signature can be used again for twice five minutes.
const MIN_REMEMBER_HTTP: u32 = 660;

#[derive(Default)]
pub(super) struct Results {
    pub(super) sending: FuturesUnordered<BoxFuture<'static, Sent>>,
    pub(super) deleting: FuturesUnordered<BoxFuture<'static, (String, Result<(), ApiError>)>>,
    in_sending: BTreeSet<String>,
    in_deleting: BTreeSet<String>,
    /// Results that could not be sent.
    again: BTreeMap<String, Again>,
    /// What the broker or the API server said about the last result that could not be sent.
    pub(super) problem: Option<String>,
}

/// A result that could not be sent, or of which not everything is done.
struct Again {
    process: Arc<RemoteProcess>,
    /// The next try.
    at: Instant,
    backoff: Backoff,
    progress: Progress,
}

impl Results {
    /// The process is gone.
    pub(super) fn forget(&mut self, name: &str) {
        self.again.remove(name);
        if self.again.is_empty() {
            self.problem = None;
        }
    }

    pub(super) fn deleted(&mut self, name: &str, deleted: Result<(), ApiError>) {
        self.in_deleting.remove(name);
        if let Err(error) = deleted {
            tracing::warn!(process = name, %error, "cannot delete a process whose time is over");
        }
    }

    fn is_waiting(&self, name: &str, now: Instant) -> bool {
        self.in_sending.contains(name) || self.again.get(name).is_some_and(|again| again.at > now)
    }

    /// What is done for a process, if an earlier try got that far.
    fn progress(&self, name: &str) -> Progress {
        self.again.get(name).map(|again| again.progress).unwrap_or_default()
    }

    fn failed(&mut self, process: Arc<RemoteProcess>, progress: Progress, error: &SendError) {
        let name = process.name_any();
        tracing::warn!(process = %name, %error, "cannot send a result, will try again");
        self.problem = Some(error.to_string());
        let again = self.again.entry(name).or_insert_with(|| Again {
            process,
            at: Instant::now(),
            backoff: Backoff::default(),
            progress,
        });
        again.at = Instant::now() + again.backoff.pause();
        again.progress = progress;
    }
}

impl Engine {
    /// Sends results that are due. Not those of processes whose message is in hand: its sender may want to wait for it.
    pub(super) fn start_results(&mut self) {
        self.find_sent();
        let Some(publisher) = self.link.publisher() else { return };
        let free = MAX_SENDING.saturating_sub(self.results.sending.len());
        let now = Instant::now();
        let due = self.runs.results(now).filter(|process| {
            let name = process.name_any();
            !self.in_hand.contains_key(&name) && !self.results.is_waiting(&name, now)
        });
        let due: Vec<_> = due.take(free).cloned().collect();
        for process in due {
            self.results.in_sending.insert(process.name_any());
            let progress = self.results.progress(&process.name_any());
            let send = jobs::send(self.kubernetes.clone(), publisher.clone(), process, progress);
            self.results.sending.push(Box::pin(send));
        }
    }

    pub(super) fn sent(&mut self, sent: Sent) {
        let Sent {
            process,
            progress,
            result,
        } = sent;
        let name = process.name_any();
        self.results.in_sending.remove(&name);
        if let Err(error) = result {
            self.results.failed(process, progress, &error);
            return;
        }
        self.is_sent(&process, progress);
    }

    /// The watch shows that the result is sent, although the last call for it has failed: its answer was lost.
    fn find_sent(&mut self) {
        let again = self.results.again.iter();
        let sent = again.filter(|(name, _)| self.runs.is_done(name) && !self.results.in_sending.contains(*name));
        let sent: Vec<_> = sent.map(|(_, again)| (again.process.clone(), again.progress)).collect();
        for (process, progress) in sent {
            self.is_sent(&process, progress);
        }
    }

    fn is_sent(&mut self, process: &RemoteProcess, progress: Progress) {
        let name = process.name_any();
        let dead_lettered = progress.is_dead_lettered();
        self.results.forget(&name);
        self.complete.remove(&name);
        self.runs.sent(process, Timestamp::now());
        let failure = outcome::failure(process);
        let outcome = if failure.is_some() {
            Count::Failed
        } else {
            Count::Succeeded
        };
        self.board.count(outcome, 1);
        let kept = self.kept.remove(&name).unwrap_or_default();
        if dead_lettered || (failure.is_some() && !kept.is_empty()) {
            self.board.count(Count::DeadLettered, 1);
        }
        self.settle_kept(&name, kept, failure.filter(|_| !dead_lettered));
    }

    /// Settles messages whose process has ended.
    pub(super) fn settle_kept(&mut self, name: &str, receipts: Vec<Box<dyn Receipt>>, failure: Option<String>) {
        for receipt in receipts {
            *self.in_hand.entry(name.to_owned()).or_default() += 1;
            let settle = jobs::settle_kept(receipt, name.to_owned(), failure.clone());
            let name = name.to_owned();
            self.settling.push(Box::pin(async move { (name, settle.await) }));
        }
    }

    /// Deletes processes whose id need not be remembered any more.
    pub(super) fn start_deletions(&mut self) {
        let is_http = self.trigger.spec.source.http.is_some();
        let least = if is_http { MIN_REMEMBER_HTTP } else { 0 };
        let remember = self.trigger.spec.remember_seconds().max(least);
        let free = MAX_DELETING.saturating_sub(self.results.deleting.len());
        let old = self.runs.forgotten(Timestamp::now(), remember);
        let old =
            old.filter(|(name, _)| !self.results.in_deleting.contains(*name) && !self.in_hand.contains_key(*name));
        let old: Vec<_> = old
            .take(free)
            .map(|(name, uid)| (name.to_owned(), uid.to_owned()))
            .collect();
        for (name, uid) in old {
            self.results.in_deleting.insert(name.clone());
            let kubernetes = self.kubernetes.clone();
            self.results.deleting.push(Box::pin(async move {
                let deleted = kubernetes.delete(&name, &uid).await;
                (name, deleted)
            }));
        }
    }

    /// Tells the broker that kept messages are still being worked on.
    pub(super) async fn extend_kept(&mut self) {
        let extensions = self.kept.values_mut().flatten().map(|receipt| receipt.extend());
        let extended: Result<Vec<Result<(), SourceError>>, _> = timeout(EXTEND_TIMEOUT, join_all(extensions)).await;
        let failed = extended.iter().flatten().filter(|extended| extended.is_err()).count();
        if failed > 0 || extended.is_err() {
            tracing::debug!(failed, "the broker was not told that messages are kept");
        }
    }
}
