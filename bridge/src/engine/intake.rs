//! What becomes of a message: a process, an acknowledgement, a dead letter, or another try.

use jiff::Timestamp;
use kube::ResourceExt as _;
use remoteprocess_api::trigger::Acknowledge;
use remoteprocess_api::{ProcessTrigger, RemoteProcess};
use tokio::time::Instant;

use super::jobs::{self, Intake, Settled};
use super::{Engine, replay};
use crate::kubernetes::{ApiError, Created};
use crate::message::{self, Message, Work};
use crate::process::build_process;
use crate::runs::Known;
use crate::source::{Delivery, Receipt};
use crate::status::Count;

impl Engine {
    pub(super) fn take(&mut self, delivery: Delivery) {
        self.board.received(Timestamp::now());
        let Delivery { message, receipt } = delivery;
        match message::read(&message, &self.trigger.name_any(), &self.trigger.spec) {
            Err(poison) => self.refuse(String::new(), message, receipt, poison.0),
            Ok(work) => self.start(work, receipt),
        }
    }

    fn start(&mut self, work: Work, receipt: Box<dyn Receipt>) {
        let process = build_process(&self.trigger, &work);
        let name = process.name_any();
        *self.in_hand.entry(name.clone()).or_default() += 1;
        let is_running = self.runs.known(&name) == Known::Running;
        if is_running && !self.keeps() && self.complete.contains(&name) {
            self.board.count(Count::Duplicate, 1);
            let settle = jobs::settle_running(receipt, name.clone());
            self.settling.push(Box::pin(async move { (name, settle.await) }));
            return;
        }
        let intake = Intake {
            process,
            message: work.message,
            receipt,
        };
        self.intake = Some(Box::pin(jobs::create(self.kubernetes.clone(), intake)));
    }

    /// Whether messages are settled when their process has ended.
    fn keeps(&self) -> bool {
        self.trigger.spec.acknowledge() == Acknowledge::Finished && self.link.keeps_messages()
    }

    /// Whether the broker is to dispose of the messages of failed processes in its own manner.
    fn rejects_failures(&self) -> bool {
        self.keeps() && !has_dead_letter_address(&self.trigger)
    }

    pub(super) fn created(&mut self, intake: Intake, created: Result<Created, ApiError>) {
        let name = intake.process.name_any();
        match created {
            Ok(Created::New(process)) => {
                self.gate.created(&name, Instant::now());
                self.board.count(Count::Started, 1);
                self.runs.created(&name);
                self.settle(name, intake, *process);
            }
            Ok(Created::Exists(process)) => {
                self.gate.accepted();
                self.board.count(Count::Duplicate, 1);
                if process.is_final() {
                    self.settle_ended(name, intake, *process);
                } else {
                    self.runs.created(&name);
                    self.settle(name, intake, *process);
                }
            }
            Ok(Created::Foreign) => {
                let reason = format!("the name {name} belongs to a process that is not of this trigger");
                self.refuse(name, intake.message, intake.receipt, reason);
            }
            Err(error @ ApiError::Invalid(_)) => {
                let reason = error.to_string();
                self.report.invalid = Some(error);
                self.refuse(name, intake.message, intake.receipt, reason);
            }
            Err(ApiError::Forbidden(said)) if self.gate.is_refused_for_good(&name, &said, Instant::now()) => {
                let reason = format!("a policy of the cluster does not let the process be created: {said}");
                self.refuse(name, intake.message, intake.receipt, reason);
            }
            Err(error) => {
                let delay = self.gate.delay(&name, Instant::now());
                let put_back = jobs::put_back(intake.receipt, error, delay);
                self.settling.push(Box::pin(async move { (name, put_back.await) }));
            }
        }
    }

    fn settle(&mut self, name: String, intake: Intake, process: RemoteProcess) {
        self.report.invalid = None;
        let Some(publisher) = self.link.publisher() else {
            // The source was lost in the meantime: the broker delivers the message again.
            self.release(&name);
            return;
        };
        let settle = jobs::settle(self.kubernetes.clone(), publisher, intake, process, self.keeps());
        self.settling.push(Box::pin(async move { (name, settle.await) }));
    }

    fn settle_ended(&mut self, name: String, intake: Intake, process: RemoteProcess) {
        let Some(publisher) = self.link.publisher() else {
            self.release(&name);
            return;
        };
        let settle = jobs::settle_ended(
            self.kubernetes.clone(),
            publisher,
            intake,
            process,
            self.rejects_failures(),
        );
        self.settling.push(Box::pin(async move { (name, settle.await) }));
    }

    fn refuse(&mut self, name: String, message: Message, receipt: Box<dyn Receipt>, reason: String) {
        tracing::warn!(process = name, reason, "a message is refused");
        let Some(publisher) = self.link.publisher() else {
            self.release(&name);
            return;
        };
        let message = message.into_dead_letter(&replay::full_name(&self.trigger), None);
        let refuse = jobs::refuse(publisher, message, receipt, reason);
        self.settling.push(Box::pin(async move { (name, refuse.await) }));
    }

    pub(super) fn settled(&mut self, name: &str, settled: Settled) {
        self.release(name);
        match settled {
            Settled::Acknowledged => {
                self.note_complete(name);
            }
            Settled::Kept(kept) => {
                self.note_complete(name);
                if self.runs.is_done(name) {
                    self.settle_kept(name, vec![kept], None);
                } else {
                    self.kept.entry(name.to_owned()).or_default().push(kept);
                }
            }
            Settled::Refused { dead_lettered } => {
                self.report.stuck = None;
                // A webhook has told the sender, and has counted that.
                if dead_lettered || self.link.keeps_messages() {
                    self.board.count(Count::DeadLettered, 1);
                }
            }
            Settled::Stuck(error) => {
                tracing::warn!(process = name, %error, "a message cannot be dead-lettered, will try again");
                self.report.stuck = Some((error, Instant::now()));
            }
            Settled::PutBack(error) => {
                tracing::warn!(process = name, %error, "a message is put back");
                self.gate.refused(error, Instant::now());
            }
            Settled::Lost(error) => tracing::warn!(process = name, %error, "a message was not settled"),
        }
    }

    fn note_complete(&mut self, name: &str) {
        if self.runs.known(name) == Known::Running {
            self.complete.insert(name.to_owned());
        }
    }

    fn release(&mut self, name: &str) {
        if let Some(count) = self.in_hand.get_mut(name) {
            *count -= 1;
            if *count == 0 {
                self.in_hand.remove(name);
            }
        }
    }
}

/// Whether failed messages have an address of their own.
fn has_dead_letter_address(trigger: &ProcessTrigger) -> bool {
    let source = &trigger.spec.source;
    let nats = source
        .nats
        .as_ref()
        .and_then(|source| source.dead_letter_subject.as_ref());
    let rabbitmq = source
        .rabbitmq
        .as_ref()
        .and_then(|source| source.dead_letter_exchange.as_ref());
    let pubsub = source
        .pubsub
        .as_ref()
        .and_then(|source| source.dead_letter_topic.as_ref());
    nats.or(rabbitmq).or(pubsub).is_some()
}
