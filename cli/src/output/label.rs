/// Those of the 16 terminal colors that are readable on a dark and on a light background.
const COLORS: [u8; 12] = [31, 32, 33, 34, 35, 36, 91, 92, 93, 94, 95, 96];

/// Whose output it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Label {
    /// Namespace of the process.
    pub namespace: String,
    /// Its name.
    pub process: String,
}

/// How a process is named before each line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefix {
    /// `[namespace/process] ` instead of `[process] `.
    pub with_namespace: bool,
    /// In a color that depends on the name.
    pub is_colored: bool,
}

impl Label {
    /// The text before each line.
    pub fn before(&self, prefix: Prefix) -> String {
        let name = if prefix.with_namespace {
            format!("{}/{}", self.namespace, self.process)
        } else {
            self.process.clone()
        };
        let text = format!("[{}] ", crate::render::escape(&name));
        if prefix.is_colored {
            format!("\u{1b}[{}m{text}\u{1b}[0m", color(&name))
        } else {
            text
        }
    }
}

/// The same name has the same color in each run, on each machine: FNV-1a (draft-eastlake-fnv).
fn color(name: &str) -> u8 {
    let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    // The low bits alone differ little between `job-1` and `job-2`.
    let mixed = hash ^ (hash >> 32);
    COLORS[usize::try_from(mixed % COLORS.len() as u64).unwrap_or_default()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn a_prefix_says_whose_line_it_is() {
        let label = Label {
            namespace: "a".into(),
            process: "build".into(),
        };
        let before = |with_namespace, is_colored| {
            label.before(Prefix {
                with_namespace,
                is_colored,
            })
        };
        assert_eq!(before(false, false), "[build] ");
        assert_eq!(before(true, false), "[a/build] ");
        assert_eq!(before(false, true), "\u{1b}[36m[build] \u{1b}[0m");
    }

    #[test]
    fn neighbors_have_different_colors() {
        let colors: HashSet<u8> = (0..12).map(|number| color(&format!("job-{number}"))).collect();
        assert!(colors.len() >= 6, "{colors:?}");
    }
}
