//! The manifest of the kubectl plugin for Krew: `kubectl krew install --manifest=rproc.yaml`.

use std::fs;
use std::path::Path;

use anyhow::Result;

use super::{ARCHITECTURES, digest};

/// Writes `rproc.yaml`: Krew finds the plugin by the name of the manifest, and calls the program `kubectl-rproc`.
pub(super) fn write(dist: &Path, version: &str, url: &str) -> Result<()> {
    let mut platforms = String::new();
    for (arch, _) in ARCHITECTURES {
        let file = format!("rproc-{version}-linux-{arch}.tar.gz");
        let sha256 = digest(&dist.join(&file))?;
        platforms += &platform(arch, &format!("{url}/v{version}/{file}"), &sha256);
    }
    Ok(fs::write(dist.join("rproc.yaml"), manifest(version, &platforms))?)
}

fn manifest(version: &str, platforms: &str) -> String {
    format!(
        "apiVersion: krew.googlecontainertools.github.com/v1alpha2
kind: Plugin
metadata:
  name: rproc
spec:
  version: v{version}
  homepage: https://github.com/remoteprocess/remoteprocess
  shortDescription: Run commands in pods, and lose neither output nor exit code
  description: |
    Runs a command once in a pod, streams its output and exits with its exit code.
    Connections that break are resumed where they broke. It needs the
    RemoteProcess operator in the cluster.
  platforms:
{platforms}"
    )
}

fn platform(arch: &str, uri: &str, sha256: &str) -> String {
    format!(
        "    - selector:
        matchLabels:
          os: linux
          arch: {arch}
      uri: {uri}
      sha256: {sha256}
      bin: rproc
      files:
        - from: rproc
          to: .
        - from: LICENSE
          to: .
"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_platform_has_the_sum_of_its_archive() {
        let dist = tempfile::tempdir().unwrap();
        for (arch, _) in ARCHITECTURES {
            fs::write(dist.path().join(format!("rproc-1.2.3-linux-{arch}.tar.gz")), arch).unwrap();
        }
        write(dist.path(), "1.2.3", "https://example.com/download").unwrap();
        let manifest = fs::read_to_string(dist.path().join("rproc.yaml")).unwrap();
        for (arch, _) in ARCHITECTURES {
            let file = format!("rproc-1.2.3-linux-{arch}.tar.gz");
            assert!(
                manifest.contains(&format!("uri: https://example.com/download/v1.2.3/{file}")),
                "{manifest}"
            );
            assert!(
                manifest.contains(&digest(&dist.path().join(file)).unwrap()),
                "{manifest}"
            );
        }
        assert!(manifest.contains("version: v1.2.3"));
    }
}
