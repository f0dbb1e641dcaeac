"""Packages from PyPI for the programs of the tests, kept in the user's cache folder; only the first start needs the network."""

import fcntl
import hashlib
import os
import pathlib
import shutil
import subprocess
import sys


def folder(name: str, requirements: pathlib.Path) -> pathlib.Path:
    """The folder with the pinned packages of a program; filled by the first who asks."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    tools = pathlib.Path(base, "remoteprocess", "tools")
    tools.mkdir(parents=True, exist_ok=True)
    version = f"{sys.version_info.major}.{sys.version_info.minor}".encode()
    digest = hashlib.sha256(requirements.read_bytes() + version).hexdigest()[:12]
    ready = tools / f"{name}-{digest}"
    with open(tools / f"{name}.lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not ready.exists():
            print(f"installing packages into {ready}", file=sys.stderr, flush=True)
            partial = ready.with_name(f"{ready.name}.partial")
            shutil.rmtree(partial, ignore_errors=True)
            command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
            subprocess.run([*command, "--target", partial, "-r", requirements], check=True, stdout=sys.stderr)
            partial.rename(ready)
    return ready
