//! The steps of an attempt, from the creation of its object to the seal of its output, with their times. Pure, except for
//! the metric.
//!
//! A step is told once for the whole installation: by the replica that wrote its end into the status. So no replica keeps
//! a memory of what it has told, and a restart repeats nothing.

use std::sync::LazyLock;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use remoteprocess_api::{AttemptStatus, RemoteProcess};
use remoteprocess_runtime::prometheus_client::metrics::family::Family;
use remoteprocess_runtime::prometheus_client::metrics::histogram::Histogram;
use remoteprocess_runtime::prometheus_client::registry::{Registry, Unit};

/// A part of an attempt. Each begins where the previous one ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Step {
    /// From the creation of the object until its first attempt is recorded.
    Create,
    /// Until the pod has a node.
    Schedule,
    /// Until the agent runs: volumes, sandbox, and the agent's image.
    Pod,
    /// Until the entrypoint runs: the image of the program, and its container.
    Pull,
    /// Until the start is granted.
    Grant,
    /// Until the program runs, or could not be launched.
    Launch,
    /// Until the program ends.
    Run,
    /// Until its output is sealed, and the end is in the status.
    Seal,
}

/// A step with its times. It never ends before it begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Timed {
    /// Which one.
    pub step: Step,
    /// Its beginning.
    pub from: Timestamp,
    /// Its end.
    pub to: Timestamp,
}

/// What the status does not have about the time before the grant, as far as it is known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Marks {
    /// When the pod got its node.
    pub scheduled: Option<Timestamp>,
    /// When the agent began to run, by its own clock.
    pub agent: Option<Timestamp>,
    /// When the entrypoint reached the agent, by the agent's clock.
    pub entrypoint: Option<Timestamp>,
}

impl Step {
    /// Its name in metrics and traces.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Schedule => "schedule",
            Self::Pod => "pod",
            Self::Pull => "pull",
            Self::Grant => "grant",
            Self::Launch => "launch",
            Self::Run => "run",
            Self::Seal => "seal",
        }
    }
}

/// When the pod got its node.
pub(crate) fn scheduled_at(pod: &Pod) -> Option<Timestamp> {
    let conditions = pod.status.as_ref()?.conditions.as_deref().unwrap_or_default();
    let scheduled = conditions
        .iter()
        .find(|condition| condition.type_ == "PodScheduled" && condition.status == "True")?;
    Some(scheduled.last_transition_time.as_ref()?.0)
}

/// When the attempt began: the first one with its object, each other one when it was recorded.
pub(crate) fn beginning(process: &RemoteProcess, attempt: &AttemptStatus) -> Option<Timestamp> {
    let created = process.metadata.creation_timestamp.as_ref().map(|created| created.0);
    match attempt.number {
        1 => created.or(attempt.begun_at),
        _ => attempt.begun_at,
    }
}

/// The steps up to the grant, in order and without a gap. A mark that is unknown adds its step to the next one, and a mark
/// that its clock puts outside of its neighbors is moved to them: the API server has whole seconds, and nodes have clocks
/// of their own.
pub(crate) fn before_grant(process: &RemoteProcess, attempt: &AttemptStatus, marks: &Marks) -> Vec<Timed> {
    let (Some(granted), Some(mut from)) = (attempt.granted_at, beginning(process, attempt)) else {
        return Vec::new();
    };
    from = from.min(granted);
    let created = attempt.begun_at.filter(|_| attempt.number == 1);
    let ends = [
        (Step::Create, created),
        (Step::Schedule, marks.scheduled),
        (Step::Pod, marks.agent),
        (Step::Pull, marks.entrypoint),
        (Step::Grant, Some(granted)),
    ];
    let known = ends.into_iter().filter_map(|(step, to)| Some((step, to?)));
    known
        .map(|(step, to)| {
            let to = to.clamp(from, granted);
            let timed = Timed { step, from, to };
            from = to;
            timed
        })
        .collect()
}

/// The steps that ended with this change of the record of an attempt, which was written at `now`.
pub(crate) fn ended(before: Option<&AttemptStatus>, after: &AttemptStatus, now: Timestamp) -> Vec<Timed> {
    let (started, finished) = (after.started_at, after.finished_at);
    let knew_start = before.is_some_and(|before| before.started_at.is_some());
    let knew_end = before.is_some_and(|before| before.finished_at.is_some());
    let was_sealed = before.is_some_and(|before| before.output.is_some());
    let launched = match (started, finished) {
        (Some(started), _) if !knew_start => Some(started),
        (None, Some(finished)) if !knew_end => Some(finished),
        _ => None,
    };
    let launch = (after.granted_at.zip(launched)).map(|(from, to)| (Step::Launch, from, to));
    let run = (started.zip(finished).filter(|_| !knew_end)).map(|(from, to)| (Step::Run, from, to));
    let sealed = (after.output.is_some() && !was_sealed).then_some(now);
    let seal = (finished.zip(sealed)).map(|(from, to)| (Step::Seal, from, to));
    let steps = [launch, run, seal].into_iter().flatten();
    let timed = steps.map(|(step, from, to)| Timed {
        step,
        from,
        to: to.max(from),
    });
    timed.collect()
}

/// Whether an attempt is over with this change of its record: its output is sealed, or it ended without a grant.
pub(crate) fn is_over(before: Option<&AttemptStatus>, after: &AttemptStatus) -> bool {
    let is_over = |attempt: &AttemptStatus| match attempt.granted_at {
        Some(_) => attempt.output.is_some(),
        None => attempt.finished_at.is_some(),
    };
    is_over(after) && !before.is_some_and(is_over)
}

/// Upper limits of the buckets in seconds: from a warm start to an image that takes long to pull.
const BUCKETS: [f64; 12] = [0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 300.0, 1800.0];

type ByStep = Family<[(&'static str, &'static str); 1], Histogram, fn() -> Histogram>;

static DURATIONS: LazyLock<ByStep> = LazyLock::new(|| Family::new_with_constructor(|| Histogram::new(BUCKETS)));

/// The steps that are measured. How long a program runs is its own affair.
const MEASURED: [Step; 7] = [
    Step::Create,
    Step::Schedule,
    Step::Pod,
    Step::Pull,
    Step::Grant,
    Step::Launch,
    Step::Seal,
];

/// Adds the metric to the program's registry, with a value for each step: Prometheus sees no increase in what it has not
/// seen before.
pub(crate) fn register(registry: &mut Registry) {
    for step in MEASURED {
        let _ = DURATIONS.get_or_create(&[("step", step.name())]);
    }
    registry.register_with_unit(
        "remoteprocess_step_duration",
        "How long the steps of attempts took, except for the run of the program itself",
        Unit::Seconds,
        DURATIONS.clone(),
    );
}

/// Measures what has ended: call it once for each step.
pub(crate) fn measure(steps: &[Timed]) {
    for timed in steps.iter().filter(|timed| MEASURED.contains(&timed.step)) {
        let seconds = timed.to.duration_since(timed.from).as_secs_f64();
        DURATIONS.get_or_create(&[("step", timed.step.name())]).observe(seconds);
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use remoteprocess_api::{AttemptOutput, RemoteProcessSpec};

    use super::*;

    fn at(millis: i64) -> Timestamp {
        Timestamp::from_millisecond(millis).unwrap()
    }

    fn process() -> RemoteProcess {
        let mut process = RemoteProcess::new("p", RemoteProcessSpec::default());
        process.metadata.creation_timestamp = Some(Time(at(1000)));
        process
    }

    fn granted(number: u32) -> AttemptStatus {
        AttemptStatus {
            number,
            begun_at: Some(at(1200)),
            granted_at: Some(at(5000)),
            ..AttemptStatus::default()
        }
    }

    fn names(steps: &[Timed]) -> Vec<(&'static str, i64, i64)> {
        let of = |timed: &Timed| {
            (
                timed.step.name(),
                timed.from.as_millisecond(),
                timed.to.as_millisecond(),
            )
        };
        steps.iter().map(of).collect()
    }

    #[test]
    fn the_steps_before_the_grant_leave_no_gap() {
        let marks = Marks {
            // Whole seconds: before the attempt began.
            scheduled: Some(at(1000)),
            agent: Some(at(3000)),
            // A clock that is ahead.
            entrypoint: Some(at(9000)),
        };
        let steps = before_grant(&process(), &granted(1), &marks);
        assert_eq!(
            names(&steps),
            [
                ("create", 1000, 1200),
                ("schedule", 1200, 1200),
                ("pod", 1200, 3000),
                ("pull", 3000, 5000),
                ("grant", 5000, 5000),
            ]
        );
    }

    #[test]
    fn an_unknown_mark_adds_its_step_to_the_next() {
        let steps = before_grant(&process(), &granted(2), &Marks::default());
        assert_eq!(names(&steps), [("grant", 1200, 5000)]);
        assert_eq!(
            before_grant(&process(), &AttemptStatus::default(), &Marks::default()),
            []
        );
    }

    #[test]
    fn each_step_after_the_grant_ends_once() {
        let grant = granted(1);
        let started = AttemptStatus {
            started_at: Some(at(5100)),
            ..grant.clone()
        };
        let finished = AttemptStatus {
            finished_at: Some(at(7000)),
            ..started.clone()
        };
        let sealed = AttemptStatus {
            output: Some(AttemptOutput::default()),
            ..finished.clone()
        };
        let told = |before: &AttemptStatus, after: &AttemptStatus| names(&ended(Some(before), after, at(7500)));
        let (launch, run, seal) = (("launch", 5000, 5100), ("run", 5100, 7000), ("seal", 7000, 7500));
        assert_eq!(told(&grant, &started), [launch]);
        assert_eq!(told(&started, &finished), [run]);
        assert_eq!(told(&finished, &sealed), [seal]);
        // A short run is one write.
        assert_eq!(told(&grant, &sealed), [launch, run, seal]);
        assert_eq!(told(&sealed, &sealed), []);
    }

    #[test]
    fn a_program_that_could_not_be_launched_has_no_run() {
        let end = AttemptStatus {
            finished_at: Some(at(6000)),
            ..granted(1)
        };
        assert_eq!(
            names(&ended(Some(&granted(1)), &end, at(6100))),
            [("launch", 5000, 6000)]
        );
        let ungranted = AttemptStatus {
            granted_at: None,
            ..end
        };
        assert_eq!(ended(None, &ungranted, at(6100)), []);
    }
}
