//! The kernel's OOM killer and a plain SIGKILL, in a real memory cgroup.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};

use remoteprocess_entrypoint::message::{Exited, Outcome};

use crate::agent::{Entrypoint, Mode};

const LIMIT: &str = "25165824";
/// Reads an endless line into memory.
const GREEDY: &str = "tail -n 1 /dev/zero";

/// A cgroup of its own, as a container would see it.
struct Group {
    folder: PathBuf,
    /// Used in place of `/sys/fs/cgroup`.
    mount: tempfile::TempDir,
}

impl Group {
    /// `None` if this process may not create one.
    fn new(name: &str) -> Option<Self> {
        let own = fs::read_to_string("/proc/self/cgroup").unwrap();
        let (root, place) = own.lines().find_map(|line| {
            let mut fields = line.splitn(3, ':').skip(1);
            match (fields.next()?, fields.next()?) {
                ("memory", place) => Some(("/sys/fs/cgroup/memory", place)),
                ("", place) if Path::new("/sys/fs/cgroup/cgroup.controllers").exists() => {
                    Some(("/sys/fs/cgroup", place))
                }
                _ => None,
            }
        })?;
        let name = format!("rproc-test-{name}-{}", std::process::id());
        let folder = Path::new(root).join(place.trim_start_matches('/')).join(name);
        let mount = tempfile::tempdir().unwrap();
        let version1 = root.ends_with("memory");
        fs::create_dir(&folder).ok()?;
        let group = Self { folder, mount };
        let limit = if version1 {
            "memory.limit_in_bytes"
        } else {
            "memory.max"
        };
        fs::write(group.folder.join(limit), LIMIT).ok()?;
        // Without swap, if there is any.
        for name in ["memory.swappiness", "memory.swap.max"] {
            let _ = fs::write(group.folder.join(name), "0");
        }
        if version1 {
            std::os::unix::fs::symlink(&group.folder, group.mount.path().join("memory")).unwrap();
        } else {
            for name in ["memory.events", "memory.peak", "cpu.stat"] {
                std::os::unix::fs::symlink(group.folder.join(name), group.mount.path().join(name)).unwrap();
            }
        }
        Some(group)
    }

    fn run(&self, script: &str) -> Exited {
        let members = self.folder.join("cgroup.procs");
        let options = ["--cgroup", self.mount.path().to_str().unwrap()];
        let command = ["sh", "-c", script];
        let entrypoint = Entrypoint::configured(Mode::Subreaper, &options, &command, |run| {
            #[allow(unsafe_code, reason = "`pre_exec` has no safe form")]
            // SAFETY: it only writes a file.
            unsafe {
                run.pre_exec(move || fs::write(&members, "0"));
            }
        });
        entrypoint.launch().finish().exited
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        crate::agent::eventually("the cgroup is empty", || fs::remove_dir(&self.folder).is_ok());
    }
}

fn group(name: &str) -> Option<Group> {
    let group = Group::new(name);
    if group.is_none() {
        println!("SKIPPED: no memory cgroup can be made here (needs root and a delegated memory controller)");
    }
    group
}

#[test]
fn oom_of_the_program_of_a_child_and_a_plain_kill_are_distinguished() {
    let Some(group) = group("apart") else {
        return;
    };
    let rounds = if std::env::var_os("RPROC_LONG").is_some() {
        50
    } else {
        10
    };
    let killed = Outcome::Signal(libc::SIGKILL);
    for _ in 0..rounds {
        let main = group.run(&format!("exec {GREEDY}"));
        assert_eq!((&main.outcome, main.is_oom, main.oom_kills), (&killed, true, 1));
        let plain = group.run("kill -9 $$");
        assert_eq!((&plain.outcome, plain.is_oom, plain.oom_kills), (&killed, false, 0));
        let child = group.run(&format!("{GREEDY}; exit 0"));
        assert_eq!(
            (child.outcome, child.is_oom, child.oom_kills),
            (Outcome::Code(0), false, 1)
        );
    }
}

#[test]
fn a_kill_long_after_the_oom_of_a_child_is_a_plain_kill() {
    let Some(group) = group("later") else {
        return;
    };
    let exited = group.run(&format!("{GREEDY}; sleep 4.5; kill -9 $$"));
    assert_eq!(exited.outcome, Outcome::Signal(libc::SIGKILL));
    assert_eq!((exited.is_oom, exited.oom_kills), (false, 1));
}

#[test]
fn peak_memory_is_that_of_the_container() {
    let Some(group) = group("peak") else {
        return;
    };
    let exited = group.run("head -c 8000000 /dev/zero | tail -n 1 | wc -c");
    let peak = exited.usage.peak_memory_bytes.unwrap();
    assert!((8_000_000..25_165_825).contains(&peak), "{peak}");
}
