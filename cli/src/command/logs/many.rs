use std::collections::{HashSet, VecDeque};
use std::pin::Pin;
use std::sync::Arc;

use futures::stream::FuturesUnordered;
use futures::{Stream, StreamExt};
use jiff::Timestamp;
use kube::Api;
use kube::api::{ListParams, PartialObjectMeta};
use kube::runtime::watcher::{self, Event, watcher};
use remoteprocess_api::RemoteProcess;
use remoteprocess_client::dial::NEW_LIMIT;
use remoteprocess_client::pool::Shared;
use remoteprocess_client::retry::Backoff;
use remoteprocess_client::{Cluster, Dial, Rule};
use remoteprocess_proto::v1::{Exit, ProcessKey};
use tokio::time::Instant;

use super::job::{Job, LogsArgs, Over, control, form, key, label, next_attempt, restored, shown, want};
use super::verify;
use crate::exit::{self, Verdict};
use crate::failure::Failure;
use crate::output::{Output, complain};
use crate::progress::Messages;

/// The selected processes: existing ones, and new ones.
type Coming<'a> = Pin<Box<dyn Stream<Item = Result<Found, Failure>> + 'a>>;

/// An item of that stream.
enum Found {
    One(ProcessKey),
    /// All processes that existed at the beginning were found.
    All,
}

/// Prints the output of several processes, and returns 0, 1 or 125.
pub(super) async fn run(cluster: &Arc<Cluster>, args: &LogsArgs) -> Result<u8, Failure> {
    let output = Output::standard(form(args, true), control(args))?;
    match restored(&output, args, write(cluster, args, &output)).await? {
        Over::Done(code) | Over::Left(code) => Ok(code),
    }
}

async fn write(cluster: &Arc<Cluster>, args: &LogsArgs, output: &Output) -> Result<u8, Failure> {
    let dial = Shared::new(cluster.clone());
    let work = |key: ProcessKey| one(dial.clone(), cluster, args, output, key);
    if !args.follow {
        let (keys, mut worst) = there(cluster, args).await?;
        // One after the other, so that the output of each stays together.
        for key in keys {
            worst = worse(worst, work(key).await?);
        }
        output.flush().await?;
        return Ok(worst);
    }
    let turns = Turns {
        limit: usize::from(args.max_log_requests),
        has_names: !args.names.is_empty(),
        is_quiet: args.quiet,
        output,
    };
    let (coming, missing) = coming(cluster, args).await?;
    let worst = worse(missing, turns.run(coming, work).await?);
    output.flush().await?;
    Ok(worst)
}

/// Schedules the processes.
struct Turns<'a> {
    /// How many are followed at a time.
    limit: usize,
    /// Only named processes are followed.
    has_names: bool,
    is_quiet: bool,
    output: &'a Output,
}

impl Turns<'_> {
    /// Follows each process, and returns the worst of their codes when no more can come.
    async fn run<F>(&self, mut coming: Coming<'_>, work: impl Fn(ProcessKey) -> F) -> Result<u8, Failure>
    where
        F: Future<Output = Result<u8, Failure>>,
    {
        let (mut running, mut waiting) = (FuturesUnordered::new(), VecDeque::new());
        let (mut worst, mut is_begun) = (0, false);
        loop {
            while is_begun && running.len() < self.limit {
                let Some(key) = waiting.pop_front() else { break };
                running.push(work(key));
            }
            tokio::select! {
                Some(code) = running.next() => {
                    worst = worse(worst, code?);
                    if running.is_empty() && waiting.is_empty() && !self.has_names {
                        self.say("all of them have ended; waiting for more, Ctrl-C ends this").await?;
                    }
                }
                Some(found) = coming.next() => match found? {
                    Found::One(key) => {
                        if is_begun && running.len() >= self.limit {
                            let limit = self.limit;
                            self.say(&format!("{} waits for its turn: --max-log-requests {limit}", shown(&key))).await?;
                        }
                        waiting.push_back(key);
                    }
                    Found::All => {
                        check(waiting.len(), self.limit)?;
                        is_begun = true;
                    }
                },
                else => return Ok(worst),
            }
        }
    }

    async fn say(&self, text: &str) -> Result<(), Failure> {
        if !self.is_quiet {
            self.output.line(text).await?;
        }
        Ok(())
    }
}

/// As kubectl does: fails instead of following only some of them.
fn check(count: usize, limit: usize) -> Result<(), Failure> {
    if count <= limit {
        return Ok(());
    }
    Err(Failure::new(format!(
        "{count} processes are to be followed, but no more than {limit} at a time: raise --max-log-requests"
    )))
}

/// The more significant of two codes: 125, then 1, then 0.
fn worse(one: u8, other: u8) -> u8 {
    let rank = |code: u8| match code {
        0 => 0,
        exit::UNKNOWN => exit::UNKNOWN,
        _ => 1,
    };
    rank(one).max(rank(other))
}

/// Follows one of them. Its failure is reported and does not stop the others.
async fn one(
    dial: impl Dial,
    cluster: &Arc<Cluster>,
    args: &LogsArgs,
    output: &Output,
    key: ProcessKey,
) -> Result<u8, Failure> {
    let name = shown(&key);
    let result = if args.verify {
        verify::run(dial, cluster, args, key).await
    } else {
        let messages = Messages::new(&name, args.quiet, output).among_many();
        let job = Job {
            output: output.open(label(&key)).await?,
            messages,
            unknown_until: Instant::now() + NEW_LIMIT,
            next_attempt: next_attempt(cluster, args, &key),
            is_quiet: args.quiet,
            want: want(args, key, Timestamp::now()),
        };
        match job.run(dial).await {
            Ok((exit, verdict)) => report(args, output, &name, exit.as_ref(), verdict).await,
            Err(failure) => Err(failure),
        }
    };
    match result {
        Err(failure) if failure.code != exit::PIPE => {
            output.line(&format!("{name}: {}", failure.text)).await?;
            Ok(failure.code)
        }
        other => other,
    }
}

/// Reports how it ended.
async fn report(
    args: &LogsArgs,
    output: &Output,
    name: &str,
    exit: Option<&Exit>,
    verdict: Verdict,
) -> Result<u8, Failure> {
    let said = verdict.message.or_else(|| exit.map(|exit| exit::ended(name, exit)));
    if let Some(message) = said.filter(|_| !args.quiet || verdict.code == exit::UNKNOWN) {
        output.line(&message).await?;
    }
    Ok(verdict.code)
}

/// The existing processes, oldest first; if names are given, in their order. A missing one is reported and does not
/// hide the others; the returned code is then that of the failure.
async fn there(cluster: &Arc<Cluster>, args: &LogsArgs) -> Result<(Vec<ProcessKey>, u8), Failure> {
    let (mut keys, mut worst) = (Vec::new(), 0);
    if !args.names.is_empty() {
        for name in &args.names {
            match key(cluster, Some(name), None).await {
                Ok(key) => keys.push(key),
                Err(failure) => {
                    complain(&failure.text);
                    worst = worse(worst, failure.code);
                }
            }
        }
        return Ok((keys, worst));
    }
    let params = ListParams {
        label_selector: args.selector.clone(),
        ..ListParams::default()
    };
    let list = api(cluster, args).list(&params).await;
    let mut list = list.map_err(|error| refused(cluster, &error, "list"))?.items;
    list.sort_by_key(|object| {
        let created = object.metadata.creation_timestamp.as_ref().map(|time| time.0);
        (created, object.metadata.name.clone())
    });
    keys.extend(list.iter().map(meant));
    if keys.is_empty() && !args.quiet {
        complain("no processes found");
    }
    Ok((keys, worst))
}

/// The existing processes and, if no names are given, each new one.
async fn coming<'a>(cluster: &'a Arc<Cluster>, args: &LogsArgs) -> Result<(Coming<'a>, u8), Failure> {
    if !args.names.is_empty() {
        let (keys, worst) = there(cluster, args).await?;
        let named = keys.into_iter().map(Found::One).chain([Found::All]);
        return Ok((Box::pin(futures::stream::iter(named.map(Ok))), worst));
    }
    let mut config = watcher::Config::default();
    config.label_selector.clone_from(&args.selector);
    let events = watcher(api(cluster, args), config);
    let (mut seen, mut backoff) = (HashSet::new(), Backoff::default());
    let found = events.then(move |event| {
        let found = match event {
            Ok(event) => {
                backoff = Backoff::default();
                Ok(news(&event, &mut seen))
            }
            Err(error) => Err((error, backoff.wait())),
        };
        async move {
            match found {
                Ok(found) => Ok(found),
                Err((error, wait)) => match refusal(&error) {
                    Some(error) => Err(refused(cluster, error, "watch")),
                    None => {
                        tokio::time::sleep(wait).await;
                        Ok(None)
                    }
                },
            }
        }
    });
    let found = found.filter_map(|found| async { found.transpose() });
    Ok((Box::pin(found), 0))
}

/// What an event of the watch adds.
fn news(event: &Event<PartialObjectMeta<RemoteProcess>>, seen: &mut HashSet<String>) -> Option<Found> {
    match event {
        Event::Apply(object) | Event::InitApply(object) => {
            let key = meant(object);
            seen.insert(key.uid.clone()).then_some(Found::One(key))
        }
        // The empty string marks the end of the first list, which comes once.
        Event::InitDone => seen.insert(String::new()).then_some(Found::All),
        Event::Init | Event::Delete(_) => None,
    }
}

/// A refusal of the API server, which a retry does not change.
fn refusal(error: &watcher::Error) -> Option<&kube::Error> {
    let error = match error {
        watcher::Error::InitialListFailed(error) | watcher::Error::WatchStartFailed(error) => error,
        _ => return None,
    };
    match error {
        kube::Error::Api(status) if matches!(status.code, 400 | 401 | 403 | 404) => Some(error),
        _ => None,
    }
}

fn refused(cluster: &Cluster, error: &kube::Error, verb: &'static str) -> Failure {
    let rule = Rule::process(verb, "remoteprocess-view");
    cluster.error(error, &rule, &format!("{verb} the processes")).into()
}

fn api(cluster: &Cluster, args: &LogsArgs) -> Api<PartialObjectMeta<RemoteProcess>> {
    if args.all_namespaces {
        Api::all(cluster.client.clone())
    } else {
        Api::namespaced(cluster.client.clone(), &cluster.namespace)
    }
}

fn meant(object: &PartialObjectMeta<RemoteProcess>) -> ProcessKey {
    let metadata = &object.metadata;
    ProcessKey {
        namespace: metadata.namespace.clone().unwrap_or_default(),
        name: metadata.name.clone().unwrap_or_default(),
        uid: metadata.uid.clone().unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::Target;

    fn object(uid: &str) -> PartialObjectMeta<RemoteProcess> {
        serde_json::from_value(serde_json::json!({"metadata": {"name": "job", "namespace": "n", "uid": uid}})).unwrap()
    }

    #[test]
    fn each_process_is_found_once_also_over_a_broken_watch() {
        let events = [
            Event::Init,
            Event::InitApply(object("1")),
            Event::InitDone,
            Event::Apply(object("1")),
            Event::Apply(object("2")),
            Event::Delete(object("1")),
            Event::Init,
            Event::InitApply(object("2")),
            Event::InitApply(object("3")),
            Event::InitDone,
        ];
        let mut seen = HashSet::new();
        let found: Vec<String> = events
            .iter()
            .filter_map(|event| news(event, &mut seen))
            .map(|found| match found {
                Found::One(key) => key.uid,
                Found::All => "all".into(),
            })
            .collect();
        assert_eq!(found, ["1", "all", "2", "3"]);
    }

    #[tokio::test]
    async fn those_that_come_are_followed_each_in_its_turn() {
        let key = |uid: &str| meant(&object(uid));
        #[allow(clippy::disallowed_methods, reason = "three messages")]
        let (announce, announced) = futures::channel::mpsc::unbounded();
        for found in [Found::One(key("1")), Found::One(key("2")), Found::All] {
            announce.unbounded_send(Ok(found)).unwrap();
        }
        let null = || Target::plain(std::io::sink());
        let output = Output::new(null(), null());
        let turns = Turns {
            limit: 2,
            has_names: false,
            is_quiet: false,
            output: &output,
        };
        let begun = std::cell::RefCell::new(Vec::new());
        let free = tokio::sync::Semaphore::new(0);
        let work = async |key: ProcessKey| {
            begun.borrow_mut().push(key.uid.clone());
            match free.acquire().await {
                Ok(permit) => permit.forget(),
                Err(_) => return Err(Failure::closed()),
            }
            Ok(u8::from(key.uid == "3"))
        };
        let following = turns.run(Box::pin(announced), work);
        let script = async {
            let settled = async || {
                for _ in 0..20 {
                    tokio::task::yield_now().await;
                }
                begun.borrow().clone()
            };
            assert_eq!(settled().await, ["1", "2"]);
            announce.unbounded_send(Ok(Found::One(key("3")))).unwrap();
            assert_eq!(settled().await, ["1", "2"], "no more than two at a time");
            free.add_permits(1);
            assert_eq!(settled().await, ["1", "2", "3"]);
            free.add_permits(2);
            drop(announce);
        };
        let (code, ()) = tokio::join!(following, script);
        assert_eq!(code, Ok(1));
    }

    #[test]
    fn the_worst_end_is_the_end_of_all() {
        for (codes, code) in [
            (&[0, 0][..], 0),
            (&[0, 7], 1),
            (&[137, 125, 0], 125),
            (&[200], 1),
            (&[], 0),
        ] {
            assert_eq!(
                codes.iter().fold(0, |worst, code| worse(worst, *code)),
                code,
                "{codes:?}"
            );
        }
    }

    #[test]
    fn too_many_are_refused_with_the_flag_that_helps() {
        assert!(check(50, 50).is_ok());
        assert!(check(51, 50).unwrap_err().text.contains("--max-log-requests"));
    }
}
