//! How many messages a test sends, and which part it kills when.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Result, ensure};
use remoteprocess_e2e::{is_long, number};

/// Messages for which one kill is planned, in the largest sizes.
const MESSAGES_PER_KILL: usize = 200;

/// How much is done.
pub(crate) struct Size {
    /// Distinct messages.
    pub(crate) messages: usize,
    /// How often something dies.
    pub(crate) kills: usize,
}

impl Size {
    /// Each part dies once.
    pub(crate) const SMALL: Self = Self { messages: 24, kills: 3 };
    /// The operator does not die: other tests kill it at the same time.
    pub(crate) const SMALLEST: Self = Self { messages: 12, kills: 2 };

    /// This size; or 1,000 messages and 10 kills with `RPROC_LONG=1`; or as many messages as `RPROC_MESSAGES` says, and a
    /// kill for each 200 of them, but at least 10.
    pub(crate) fn or_larger(self) -> Result<Self> {
        let wanted = number("RPROC_MESSAGES")?.map(usize::try_from).transpose()?;
        let Some(messages) = wanted.or(is_long().then_some(1000)) else {
            return Ok(self);
        };
        let kills = (messages / MESSAGES_PER_KILL).max(10);
        ensure!(
            messages > 2 * kills,
            "{messages} messages are too few for {kills} kills"
        );
        Ok(Self { messages, kills })
    }

    /// How long it may take on a machine that also does other work.
    pub(crate) fn deadline(&self) -> Duration {
        Duration::from_secs(120 + 3 * self.messages as u64 + 60 * self.kills as u64)
    }

    /// Whether a message is sent twice: one in twenty is.
    pub(crate) fn is_sent_twice(number: usize) -> bool {
        number.is_multiple_of(20)
    }

    /// How many messages are sent twice.
    pub(crate) fn repeated(&self) -> usize {
        self.messages.div_ceil(20)
    }

    /// What dies, in this order: each part as often as the others, at a moment that is chosen at random from a span of
    /// its own.
    pub(crate) fn plan(&self, seed: u64) -> Vec<Kill> {
        let mut random = Random(seed);
        let mut parts: Vec<Part> = Part::ALL.into_iter().cycle().take(self.kills).collect();
        for last in (1..parts.len()).rev() {
            parts.swap(last, random.below(last + 1));
        }
        let span = self.messages / (self.kills + 1);
        let moments = (1..).map(|kill| kill * span);
        let kills = parts.into_iter().zip(moments);
        kills
            .map(|(part, moment)| Kill {
                part,
                after: moment - random.below(span),
            })
            .collect()
    }
}

/// What is killed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Part {
    Bridge,
    Broker,
    Operator,
}

impl Part {
    const ALL: [Self; 3] = [Self::Bridge, Self::Broker, Self::Operator];
}

/// A kill.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kill {
    pub(crate) part: Part,
    /// How many messages have a result when it happens.
    pub(crate) after: usize,
}

/// The seed in `RPROC_SEED`, or another one each time.
pub(crate) fn seed() -> Result<u64> {
    let chosen = SystemTime::now().duration_since(UNIX_EPOCH)?.subsec_nanos();
    Ok(number("RPROC_SEED")?.unwrap_or(chosen.into()))
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) % end as u64) as usize
    }
}

#[test]
fn each_part_dies_as_often_as_the_others() {
    for (messages, kills) in [(24, 3), (1000, 10), (10_000, 50)] {
        let plan = Size { messages, kills }.plan(7);
        assert_eq!(plan.len(), kills);
        assert!(plan.is_sorted_by(|one, next| one.after < next.after), "{plan:?}");
        assert!(plan.iter().all(|kill| (1..messages).contains(&kill.after)), "{plan:?}");
        for part in Part::ALL {
            let times = plan.iter().filter(|kill| kill.part == part).count();
            assert!((kills / 3..=kills.div_ceil(3)).contains(&times), "{plan:?}");
        }
    }
}
