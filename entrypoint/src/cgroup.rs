//! What the container's cgroup reports: processes killed because memory ran out, CPU time, peak memory.
//!
//! The container sees its own cgroup at the root of the mount, as container runtimes make it: version 2, or one folder
//! per controller in version 1.

use std::fs::{self, File};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::Duration;

use remoteprocess_entrypoint::message::Usage;

use crate::clock::Moment;

/// Where container runtimes mount it.
pub(crate) const MOUNT: &str = "/sys/fs/cgroup";
/// If a program ends by SIGKILL within this time after an out-of-memory kill, it was the process that was killed: a
/// large process needs a while to release its memory.
const DYING: Duration = Duration::from_secs(3);
/// Version 1 announces nothing, so the counter is read this often.
const LOOK: Duration = Duration::from_secs(1);

/// CPU time so far, microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Cpu {
    user: u64,
    system: u64,
}

/// The cgroup, counted since the launch.
#[derive(Debug)]
pub(crate) struct Cgroup {
    mount: Option<PathBuf>,
    /// The OOM counter, and whether it can be polled.
    counter: Option<(File, bool)>,
    kills_before: u64,
    kills: u64,
    last_kill: Option<Moment>,
    next_look: Option<Moment>,
    cpu_before: Cpu,
}

impl Cgroup {
    /// The cgroup below this mount; without a mount nothing is known.
    pub(crate) fn new(mount: Option<PathBuf>) -> Self {
        Self {
            mount,
            counter: None,
            kills_before: 0,
            kills: 0,
            last_kill: None,
            next_look: None,
            cpu_before: Cpu::default(),
        }
    }

    /// Starts to count: the program is about to start.
    pub(crate) fn begin(&mut self, now: Moment) {
        self.counter = self.open_counter();
        self.kills_before = self.read_counter();
        self.kills = self.kills_before;
        self.cpu_before = self.cpu().unwrap_or_default();
        self.look_again(now);
    }

    /// Reads the counter.
    pub(crate) fn look(&mut self, now: Moment) {
        let kills = self.read_counter();
        if kills > self.kills {
            self.kills = kills;
            self.last_kill = Some(now);
        }
        self.look_again(now);
    }

    /// When to read the counter, if nothing announces a change.
    pub(crate) fn next_look(&self) -> Option<Moment> {
        self.next_look
    }

    /// The descriptor that announces a change (with `POLLPRI`), if there is one.
    pub(crate) fn announcer(&self) -> Option<BorrowedFd<'_>> {
        let (file, _) = self.counter.as_ref().filter(|(_, can_poll)| *can_poll)?;
        Some(file.as_fd())
    }

    /// Processes killed since the launch, at the last reading.
    pub(crate) fn oom_kills(&self) -> u64 {
        self.kills.saturating_sub(self.kills_before)
    }

    /// Whether a process that just ended by SIGKILL was killed because memory ran out. Call [`Self::look`] first.
    pub(crate) fn has_just_killed(&self, now: Moment) -> bool {
        self.last_kill.is_some_and(|at| now <= at + DYING)
    }

    /// Replaces numbers of `getrusage(2)` by those that the cgroup knows better.
    pub(crate) fn correct(&self, usage: &mut Usage) {
        if let Some(cpu) = self.cpu() {
            usage.user_micros = cpu.user.saturating_sub(self.cpu_before.user);
            usage.system_micros = cpu.system.saturating_sub(self.cpu_before.system);
        }
        let peak = ["memory.peak", "memory/memory.max_usage_in_bytes"];
        usage.peak_memory_bytes = peak.iter().find_map(|name| self.read(name)?.trim().parse().ok());
    }

    fn read(&self, name: &str) -> Option<String> {
        fs::read_to_string(self.mount.as_ref()?.join(name)).ok()
    }

    fn open_counter(&self) -> Option<(File, bool)> {
        let mount = self.mount.as_ref()?;
        let version2 = File::open(mount.join("memory.events")).map(|file| (file, true));
        version2
            .or_else(|_| File::open(mount.join("memory/memory.oom_control")).map(|file| (file, false)))
            .ok()
    }

    /// Also arms the announcement: it is silent until the file has been read again.
    fn read_counter(&self) -> u64 {
        let mut text = [0; 512];
        let read = self
            .counter
            .as_ref()
            .and_then(|(file, _)| file.read_at(&mut text, 0).ok());
        let text = read.and_then(|length| std::str::from_utf8(&text[..length]).ok());
        text.and_then(|text| number(text, "oom_kill")).unwrap_or(self.kills)
    }

    fn look_again(&mut self, now: Moment) {
        self.next_look = matches!(self.counter, Some((_, false))).then(|| now + LOOK);
    }

    fn cpu(&self) -> Option<Cpu> {
        if let Some(stat) = self.read("cpu.stat") {
            return Some(Cpu {
                user: number(&stat, "user_usec")?,
                system: number(&stat, "system_usec")?,
            });
        }
        let micros = |name: &str| Some(self.read(name)?.trim().parse::<u64>().ok()? / 1000);
        Some(Cpu {
            user: micros("cpuacct/cpuacct.usage_user")?,
            system: micros("cpuacct/cpuacct.usage_sys")?,
        })
    }
}

/// The number behind a name at the beginning of a line.
fn number(text: &str, name: &str) -> Option<u64> {
    let value = |line: &str| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok();
    text.lines().find_map(value)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn write(mount: &Path, name: &str, text: &str) {
        let path = mount.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn events(kills: u64) -> String {
        format!("low 0\nhigh 0\nmax 8\noom 2\noom_kill {kills}\noom_group_kill 0\n")
    }

    fn at(seconds: u64) -> Moment {
        Duration::from_secs(seconds)
    }

    #[test]
    fn version_2_is_read_since_the_launch() {
        let mount = tempfile::tempdir().unwrap();
        write(mount.path(), "memory.events", &events(2));
        write(mount.path(), "cpu.stat", "usage_usec 9\nuser_usec 5\nsystem_usec 4\n");
        write(mount.path(), "memory.peak", "123456\n");
        let mut cgroup = Cgroup::new(Some(mount.path().into()));
        cgroup.begin(at(10));
        assert!(cgroup.announcer().is_some() && cgroup.next_look().is_none());
        assert_eq!((cgroup.oom_kills(), cgroup.has_just_killed(at(10))), (0, false));
        write(mount.path(), "memory.events", &events(5));
        write(
            mount.path(),
            "cpu.stat",
            "usage_usec 59\nuser_usec 35\nsystem_usec 24\n",
        );
        cgroup.look(at(20));
        assert_eq!(cgroup.oom_kills(), 3);
        assert!(cgroup.has_just_killed(at(21)) && !cgroup.has_just_killed(at(24)));
        let mut usage = Usage::default();
        cgroup.correct(&mut usage);
        assert_eq!(
            (usage.user_micros, usage.system_micros, usage.peak_memory_bytes),
            (30, 20, Some(123_456))
        );
    }

    #[test]
    fn version_1_is_read_and_looked_at_again() {
        let mount = tempfile::tempdir().unwrap();
        let control = |kills| format!("oom_kill_disable 0\nunder_oom 0\noom_kill {kills}\n");
        write(mount.path(), "memory/memory.oom_control", &control(1));
        write(mount.path(), "memory/memory.max_usage_in_bytes", "77\n");
        write(mount.path(), "cpuacct/cpuacct.usage_user", "1000000\n");
        write(mount.path(), "cpuacct/cpuacct.usage_sys", "2000000\n");
        let mut cgroup = Cgroup::new(Some(mount.path().into()));
        cgroup.begin(at(10));
        assert!(cgroup.announcer().is_none());
        assert_eq!(cgroup.next_look(), Some(at(11)));
        write(mount.path(), "memory/memory.oom_control", &control(2));
        write(mount.path(), "cpuacct/cpuacct.usage_user", "3000000\n");
        cgroup.look(at(11));
        assert_eq!((cgroup.oom_kills(), cgroup.next_look()), (1, Some(at(12))));
        let mut usage = Usage::default();
        cgroup.correct(&mut usage);
        assert_eq!(
            (usage.user_micros, usage.system_micros, usage.peak_memory_bytes),
            (2000, 0, Some(77))
        );
    }

    #[test]
    fn without_a_cgroup_the_usage_of_reaped_processes_stays() {
        let mut cgroup = Cgroup::new(None);
        cgroup.begin(at(1));
        cgroup.look(at(2));
        let told = Usage {
            user_micros: 7,
            ..Usage::default()
        };
        let mut usage = told;
        cgroup.correct(&mut usage);
        assert_eq!((usage, cgroup.oom_kills(), cgroup.next_look()), (told, 0, None));
    }
}
