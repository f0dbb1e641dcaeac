//! Plans when one CA follows another. Pure.
//!
//! The next CA is announced, and everyone learns to trust it. After a wait it is switched to: it signs, and the former one
//! is only trusted. When the last certificate of the former one has ended, it is retired.

use std::time::{Duration, SystemTime};

/// How long CAs and certificates live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Schedule {
    /// Life of a CA of our own.
    pub lifetime: Duration,
    /// How long before the end of a CA of our own the next one is announced; at most two thirds of its life.
    pub renew_before: Duration,
    /// Longest life of the certificates of agents and users. They renew after three fifths of it.
    pub leaf: Duration,
}

impl Default for Schedule {
    fn default() -> Self {
        Self {
            lifetime: Duration::from_secs(365 * 24 * 3600),
            renew_before: Duration::from_secs(30 * 24 * 3600),
            leaf: Duration::from_secs(3600),
        }
    }
}

impl Schedule {
    /// How long a CA is trusted before it signs, and after it has signed for the last time: twice the life of a
    /// certificate, so that everyone has renewed, and has tried again where the first try failed.
    pub fn overlap(&self) -> Duration {
        self.leaf * 2
    }
}

/// When a CA is valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Validity {
    pub not_before: SystemTime,
    pub not_after: SystemTime,
}

/// All CAs of a moment, by their times.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Times {
    /// The CA that signs.
    pub current: Validity,
    /// The announced CA, and when it was announced.
    pub next: Option<(Validity, SystemTime)>,
    /// Until when each former CA is trusted.
    pub former: Vec<SystemTime>,
}

/// Whether a further CA is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Want {
    /// When the current one nears its end.
    OnSchedule,
    /// At once.
    Now,
    /// Not before the source of CAs has one.
    Never,
}

/// What to do with the CAs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Let everyone trust a further CA.
    Announce,
    /// Forget an announced CA that has expired before it signed.
    Drop,
    /// Sign with the announced CA, and trust the current one until its certificates have ended.
    Switch,
    /// Forget the former CAs whose certificates have ended.
    Retire,
}

/// What is to be done at `now`, if anything.
pub(super) fn step(times: &Times, schedule: &Schedule, want: Want, now: SystemTime) -> Option<Step> {
    if times.former.iter().any(|until| *until <= now) {
        return Some(Step::Retire);
    }
    match (&times.next, want) {
        (Some((next, _)), _) if next.not_after <= now => Some(Step::Drop),
        (Some((_, announced)), _) => (switch_at(&times.current, *announced, schedule) <= now).then_some(Step::Switch),
        (None, Want::Now) => Some(Step::Announce),
        (None, Want::OnSchedule) => (renew_at(&times.current, schedule) <= now).then_some(Step::Announce),
        (None, Want::Never) => None,
    }
}

/// When [`step`] has the next thing to do; `None` if time alone brings nothing.
pub(super) fn due(times: &Times, schedule: &Schedule, want: Want) -> Option<SystemTime> {
    let turn = match &times.next {
        Some((next, announced)) => Some(switch_at(&times.current, *announced, schedule).min(next.not_after)),
        None => (want == Want::OnSchedule).then(|| renew_at(&times.current, schedule)),
    };
    times.former.iter().copied().chain(turn).min()
}

/// When the CA that was announced at `announced` begins to sign. A current CA that ends soon shortens the wait: its
/// certificates end with it, so they are renewed sooner as well. They are renewed after three fifths of their life, and
/// this waits for three quarters.
pub(super) fn switch_at(current: &Validity, announced: SystemTime, schedule: &Schedule) -> SystemTime {
    let rest = current.not_after.duration_since(announced).unwrap_or_default();
    announced + schedule.overlap().min(rest * 3 / 4)
}

fn renew_at(current: &Validity, schedule: &Schedule) -> SystemTime {
    let life = current.not_after.duration_since(current.not_before).unwrap_or_default();
    current.not_after - schedule.renew_before.min(life * 2 / 3)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const START: SystemTime = SystemTime::UNIX_EPOCH;

    fn at(seconds: u64) -> SystemTime {
        START + Duration::from_secs(seconds)
    }

    fn valid(from: u64, to: u64) -> Validity {
        Validity {
            not_before: at(from),
            not_after: at(to),
        }
    }

    fn schedule(lifetime: u64, renew_before: u64, leaf: u64) -> Schedule {
        Schedule {
            lifetime: Duration::from_secs(lifetime),
            renew_before: Duration::from_secs(renew_before),
            leaf: Duration::from_secs(leaf),
        }
    }

    #[test]
    fn a_rotation_is_announced_waits_switches_and_retires() {
        let schedule = schedule(1000, 400, 10);
        let mut times = Times {
            current: valid(0, 1000),
            next: None,
            former: Vec::new(),
        };
        let step_at = |times: &Times, second| step(times, &schedule, Want::OnSchedule, at(second));
        assert_eq!(step_at(&times, 599), None);
        assert_eq!(step_at(&times, 600), Some(Step::Announce));
        times.next = Some((valid(600, 1600), at(600)));
        assert_eq!(step_at(&times, 619), None, "it waits");
        assert_eq!(step_at(&times, 620), Some(Step::Switch));
        times = Times {
            current: valid(600, 1600),
            next: None,
            former: vec![at(640)],
        };
        assert_eq!(step_at(&times, 639), None);
        assert_eq!(step_at(&times, 640), Some(Step::Retire));
    }

    #[test]
    fn an_announced_ca_that_ends_is_dropped_and_an_expired_one_followed_at_once() {
        let schedule = schedule(1000, 400, 10);
        let mut times = Times {
            current: valid(0, 1000),
            next: Some((valid(0, 15), at(10))),
            former: Vec::new(),
        };
        assert_eq!(step(&times, &schedule, Want::Never, at(15)), Some(Step::Drop));
        times.next = Some((valid(2000, 3000), at(2000)));
        assert_eq!(step(&times, &schedule, Want::Never, at(2000)), Some(Step::Switch));
    }

    /// A CA with its number.
    #[derive(Clone, Copy)]
    struct Ca(usize, Validity);

    /// A relay and one member that renews after three fifths of the life of its certificate, as time passes.
    struct World {
        schedule: Schedule,
        current: Ca,
        next: Option<(Ca, SystemTime)>,
        former: Vec<(usize, SystemTime)>,
        made: usize,
        /// What the member trusts, who signed its certificate, when it renews, and when it ends.
        member: (Vec<usize>, usize, SystemTime, SystemTime),
    }

    impl World {
        fn new(schedule: Schedule) -> Self {
            let first = Ca(
                0,
                Validity {
                    not_before: START,
                    not_after: START + schedule.lifetime,
                },
            );
            let mut world = Self {
                schedule,
                current: first,
                next: None,
                former: Vec::new(),
                made: 1,
                member: (vec![0], 0, START, START),
            };
            world.renew(START);
            world
        }

        fn times(&self) -> Times {
            Times {
                current: self.current.1,
                next: self.next.map(|(ca, announced)| (ca.1, announced)),
                former: self.former.iter().map(|(_, until)| *until).collect(),
            }
        }

        fn bundle(&self) -> Vec<usize> {
            let next = self.next.iter().map(|(ca, _)| ca.0);
            let former = self.former.iter().map(|(number, _)| *number);
            next.chain(former).chain([self.current.0]).collect()
        }

        fn take(&mut self, step: Step, now: SystemTime) {
            match step {
                Step::Announce => {
                    let validity = Validity {
                        not_before: now,
                        not_after: now + self.schedule.lifetime,
                    };
                    self.next = Some((Ca(self.made, validity), now));
                    self.made += 1;
                }
                Step::Drop => self.next = None,
                Step::Switch => {
                    let (next, _) = self.next.take().expect("one was announced");
                    self.former.push((self.current.0, now + self.schedule.overlap()));
                    self.current = next;
                }
                Step::Retire => self.former.retain(|(_, until)| *until > now),
            }
        }

        fn renew(&mut self, now: SystemTime) {
            let end = (now + self.schedule.leaf).min(self.current.1.not_after);
            let life = end.duration_since(now).expect("the CA has not expired");
            self.member = (self.bundle(), self.current.0, now + life * 3 / 5, end);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        /// With any schedule and any requests: the member always trusts who signs, is always trusted, no CA signs
        /// after its end, and what is trusted stays few.
        #[test]
        fn nobody_is_cut_off(
            leaf in 4_u64..4000, lives in 4_u64..40, early in 1_u64..100, requests in prop::collection::vec(0_u64..20_000, 0..8),
        ) {
            let lifetime = leaf * lives;
            let schedule = schedule(lifetime, lifetime * early / 100, leaf);
            let mut world = World::new(schedule);
            // The operator looks this often.
            let tick = (leaf / 40).max(1);
            for second in (0..lifetime * 3).step_by(usize::try_from(tick).expect("small")) {
                let now = at(second);
                let requested = requests.iter().any(|request| (second..second + tick).contains(&(request * lifetime / 10_000)));
                let want = if requested { Want::Now } else { Want::OnSchedule };
                while let Some(what) = step(&world.times(), &schedule, want, now) {
                    if what == Step::Announce && world.next.is_some() {
                        panic!("two announced");
                    }
                    world.take(what, now);
                }
                prop_assert!(now < world.current.1.not_after, "an expired CA signs");
                prop_assert!(world.bundle().len() <= 5, "{:?}", world.bundle());
                let (trusted, signer, renew_at, end) = &world.member;
                prop_assert!(trusted.contains(&world.current.0), "the member refuses the operator at {second}");
                prop_assert!(now >= *end || world.bundle().contains(signer), "the operator refuses the member at {second}");
                if *renew_at <= now {
                    world.renew(now);
                }
                let due = due(&world.times(), &schedule, Want::OnSchedule);
                prop_assert!(due.is_some_and(|due| due > now), "{due:?}");
            }
            prop_assert!(world.made > 2, "it rotates");
        }
    }
}
