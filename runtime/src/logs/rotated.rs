use std::{
    fs::{self, File},
    io::{self, Write, stderr},
};

use super::AuditFile;

/// The file of the audit log. It holds at most half of the size; when it is full it becomes `PATH.1`. A line that cannot
/// be written to it goes to stderr.
pub(super) struct Rotated {
    settings: AuditFile,
    open: Option<Open>,
}

struct Open {
    file: File,
    size: u64,
}

impl Rotated {
    /// Continues the file, or creates it.
    pub(super) fn open(settings: &AuditFile) -> io::Result<Self> {
        Ok(Self {
            open: Some(Open::at(settings)?),
            settings: settings.clone(),
        })
    }

    fn append(&mut self, line: &[u8]) -> io::Result<()> {
        let length = line.len() as u64;
        let is_full = |open: &Open| open.size > 0 && open.size + length > self.settings.size / 2;
        if self.open.as_ref().is_some_and(is_full) {
            self.open = None;
            let mut former = self.settings.path.clone().into_os_string();
            former.push(".1");
            fs::rename(&self.settings.path, former)?;
        }
        let mut open = match self.open.take() {
            Some(open) => open,
            None => Open::at(&self.settings)?,
        };
        open.file.write_all(line)?;
        open.size += length;
        self.open = Some(open);
        Ok(())
    }
}

impl Open {
    fn at(settings: &AuditFile) -> io::Result<Self> {
        let file = File::options().create(true).append(true).open(&settings.path)?;
        let size = file.metadata()?.len();
        Ok(Self { file, size })
    }
}

impl Write for Rotated {
    /// Takes one line.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if let Err(error) = self.append(line) {
            let path = self.settings.path.display();
            writeln!(
                stderr(),
                "cannot write to the audit log {path}, which goes here instead: {error}"
            )?;
            stderr().write_all(line)?;
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_lines_are_kept_and_the_size_is_bounded() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("audit.log");
        let size = 1000;
        let settings = AuditFile {
            path: path.clone(),
            size,
        };
        let mut written = String::new();
        for part in 0..2 {
            // As after a restart.
            let mut file = Rotated::open(&settings).expect("a file");
            for number in 0..100 {
                let line = format!("{part} line {number:3}\n");
                file.write_all(line.as_bytes()).expect("written");
                written.push_str(&line);
            }
        }
        let read = |path| fs::read_to_string(path).expect("a file");
        let kept = read(directory.path().join("audit.log.1")) + &read(path);
        assert!(kept.len() as u64 <= size, "{}", kept.len());
        assert!(kept.len() as u64 > size / 2 - 20);
        assert!(written.ends_with(&kept), "without a gap, and whole lines");
    }
}
