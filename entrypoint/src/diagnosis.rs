//! Explains in a sentence why the kernel refused to execute a file.

use std::ffi::OsStr;
use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use remoteprocess_entrypoint::message::{Outcome, bounded_sentence};

/// Enough for the headers of an ELF file and the first line of a script.
const HEAD_BYTES: u64 = 4096;

/// The outcome for a name that is in no directory of PATH.
pub(crate) fn not_in_path(program: &OsStr, path: &OsStr) -> Outcome {
    let message = format!("cannot start {program:?}: not found in PATH ({})", path.display());
    Outcome::NotFound {
        message: bounded_sentence(message),
    }
}

/// The outcome for a file that `execve(2)` refused with this error.
pub(crate) fn of_exec(program: &OsStr, file: &Path, error: &io::Error) -> Outcome {
    let cause = match error.kind() {
        io::ErrorKind::NotFound => missing(file),
        io::ErrorKind::PermissionDenied => denied(file),
        _ if error.raw_os_error() == Some(libc::ENOEXEC) => format(file),
        io::ErrorKind::ArgumentListTooLong => TOO_LONG.into(),
        _ => error.to_string(),
    };
    let place = match file.as_os_str() == program {
        true => String::new(),
        false => format!(" ({})", file.display()),
    };
    let message = bounded_sentence(format!("cannot start {program:?}{place}: {cause}"));
    match error.kind() {
        io::ErrorKind::NotFound => Outcome::NotFound { message },
        _ => Outcome::NotExecutable { message },
    }
}

/// execve(2), "Limits on size of arguments and environment".
const TOO_LONG: &str = "argument list too long: one argument or variable may have 128 KiB, and all arguments and the \
                        environment together a quarter of the stack limit, usually 2 MiB; pass more by a file or by its input";

fn missing(file: &Path) -> String {
    match (fs::metadata(file), fs::read_link(file)) {
        (Ok(_), _) => match head(file).as_deref().and_then(interpreter) {
            Some(Interpreter::Script(name)) if name.ends_with('\r') => format!(
                "its first line ends with a carriage return, so there is no interpreter {name:?}; \
                 save it with Unix line ends"
            ),
            Some(Interpreter::Script(name)) => {
                format!("its interpreter {name:?} is missing in this image, or that one's loader")
            }
            Some(Interpreter::Loader(name)) => format!(
                "it is dynamically linked and its loader {name:?} is missing in this image; \
                 use a static program or an image with that C library"
            ),
            None => "its interpreter or loader is missing in this image".into(),
        },
        (Err(_), Ok(target)) => {
            format!("it is a link to {}, which does not exist", target.display())
        }
        (Err(_), Err(_)) => "no such file".into(),
    }
}

fn denied(file: &Path) -> String {
    let bits = |metadata: &Metadata| metadata.permissions().mode() & 0o7777;
    match fs::metadata(file) {
        Ok(found) if found.is_dir() => "it is a directory".into(),
        Ok(found) if !found.is_file() => "it is not a regular file".into(),
        Ok(found) if bits(&found) & 0o111 == 0 => {
            format!("it is not executable (mode {:04o})", bits(&found))
        }
        Ok(found) => format!(
            "permission denied (mode {:04o}); its owner, a mount without exec, or its interpreter \
             forbids it",
            bits(&found)
        ),
        Err(_) => "permission denied on the way to it".into(),
    }
}

fn format(file: &Path) -> String {
    match head(file).as_deref() {
        Some([]) => "it is empty".into(),
        Some(head) => match elf_machine(head) {
            Some(machine) => format!(
                "it is built for {}, and this machine is {}",
                machine_name(machine),
                std::env::consts::ARCH
            ),
            None => "unknown format; a script needs a first line such as #!/bin/sh".into(),
        },
        None => "unknown format".into(),
    }
}

fn head(file: &Path) -> Option<Vec<u8>> {
    let mut head = Vec::new();
    File::open(file).ok()?.take(HEAD_BYTES).read_to_end(&mut head).ok()?;
    Some(head)
}

#[derive(Debug, PartialEq, Eq)]
enum Interpreter {
    Script(String),
    Loader(String),
}

fn interpreter(head: &[u8]) -> Option<Interpreter> {
    match head.strip_prefix(b"#!") {
        Some(line) => {
            let line = line.split(|byte| *byte == b'\n').next()?.trim_ascii_start();
            let name = line.split(|byte| matches!(byte, b' ' | b'\t')).next()?;
            Some(Interpreter::Script(String::from_utf8_lossy(name).into_owned()))
        }
        None => elf_loader(head).map(Interpreter::Loader),
    }
}

const ELF_MAGIC: &[u8] = b"\x7fELF";
const ELF_64_LITTLE: &[u8] = b"\x02\x01";
const PT_INTERP: u64 = 3;

/// A little-endian number of `N` bytes.
fn number<const N: usize>(bytes: &[u8], at: usize) -> Option<u64> {
    let field: &[u8; N] = bytes.get(at..)?.first_chunk()?;
    Some(
        field
            .iter()
            .rev()
            .fold(0, |value, byte| (value << 8) | u64::from(*byte)),
    )
}

/// The loader of a 64-bit little-endian ELF file whose headers are within `head`.
fn elf_loader(head: &[u8]) -> Option<String> {
    head.strip_prefix(ELF_MAGIC)?.strip_prefix(ELF_64_LITTLE)?;
    let table = usize::try_from(number::<8>(head, 0x20)?).ok()?;
    let size = usize::try_from(number::<2>(head, 0x36)?).ok()?;
    let count = usize::try_from(number::<2>(head, 0x38)?).ok()?;
    let entries = head.get(table..)?.chunks_exact(size.max(0x38)).take(count);
    let entry = entries
        .into_iter()
        .find(|entry| number::<4>(entry, 0) == Some(PT_INTERP))?;
    let start = usize::try_from(number::<8>(entry, 0x08)?).ok()?;
    let name = head.get(start..)?.split(|byte| *byte == 0).next()?;
    Some(String::from_utf8_lossy(name).into_owned())
}

fn elf_machine(head: &[u8]) -> Option<u16> {
    let big_endian = head.strip_prefix(ELF_MAGIC)?.get(1) == Some(&2);
    let field: &[u8; 2] = head.get(0x12..)?.first_chunk()?;
    Some(if big_endian {
        u16::from_be_bytes(*field)
    } else {
        u16::from_le_bytes(*field)
    })
}

fn machine_name(machine: u16) -> String {
    match machine {
        3 => "x86 (32 bit)".into(),
        20 | 21 => "powerpc".into(),
        22 => "s390x".into(),
        40 => "arm (32 bit)".into(),
        62 => "x86_64".into(),
        183 => "aarch64".into(),
        243 => "riscv64".into(),
        258 => "loongarch64".into(),
        other => format!("machine {other}"),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_environment_that_is_too_large_is_named() {
        let error = io::Error::from_raw_os_error(libc::E2BIG);
        let outcome = of_exec("env".as_ref(), Path::new("/bin/env"), &error);
        let Outcome::NotExecutable { message } = outcome else {
            panic!("{outcome:?}")
        };
        assert!(message.contains("argument list too long: one argument"), "{message}");
    }

    #[test]
    fn the_interpreter_of_a_script_is_its_first_word() {
        let script = |name: &str| Some(Interpreter::Script(name.into()));
        assert_eq!(interpreter(b"#! /bin/none -x\necho"), script("/bin/none"));
        assert_eq!(interpreter(b"#!/bin/none\r\necho"), script("/bin/none\r"));
        assert_eq!(interpreter(b"echo"), None);
    }

    #[test]
    fn the_loader_and_machine_of_a_real_program_are_found() {
        let own = head(&std::env::current_exe().unwrap()).unwrap();
        let name = elf_machine(&own).map(machine_name);
        assert_eq!(name.as_deref(), Some(std::env::consts::ARCH));
        if cfg!(all(target_env = "gnu", not(target_feature = "crt-static"))) {
            assert!(elf_loader(&own).unwrap().contains("ld-linux"));
        }
    }

    #[test]
    fn a_big_endian_machine_is_named() {
        let mut head = [0; 64];
        head[..4].copy_from_slice(ELF_MAGIC);
        head[5] = 2;
        head[0x13] = 22;
        assert_eq!(elf_machine(&head).map(machine_name).as_deref(), Some("s390x"));
    }

    proptest! {
        #[test]
        fn any_file_can_be_looked_at(tail in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = interpreter(&tail);
            let elf = [ELF_MAGIC, ELF_64_LITTLE, &tail].concat();
            let _ = interpreter(&elf);
            let _ = elf_machine(&elf);
        }
    }
}
