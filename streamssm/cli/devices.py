"""``streamssm devices``: what this machine has to record with, and to run on."""

from __future__ import annotations

from typing import Any

import rich_click as click


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
def devices(as_json: bool) -> None:
    """List microphones, and what models can run on.

    'streamssm run MODEL mic:2' records from number 2; a part of the name will do as well.
    """
    found = {"microphones": _microphones(), "backends": _backends()}
    if as_json:
        import json

        click.echo(json.dumps(found, indent=2))
    else:
        _print(found)


def _microphones() -> list[dict[str, Any]] | str:
    """Every device that records, or why none is known."""
    from streamssm.errors import SourceError
    from streamssm.sources.microphone import load_library

    try:
        library = load_library("a microphone")
        known = list(library.query_devices())
        chosen = _default(library)
    except SourceError as error:
        return str(error)
    except library.PortAudioError as error:
        return f"PortAudio fails: {error}"
    return [
        {
            "number": number,
            "name": device["name"],
            "channels": device["max_input_channels"],
            "rate": device["default_samplerate"],
            "default": number == chosen,
        }
        for number, device in enumerate(known)
        if device["max_input_channels"]
    ]


def _default(library: Any) -> int | None:
    try:
        return int(library.query_devices(None, "input")["index"])
    except (ValueError, library.PortAudioError):
        return None


def _backends() -> list[dict[str, str]]:
    """Each backend, and how it stands with it."""
    from streamssm import backends

    states = {"cpu": _cpu, "cuda": _cuda, "tensorrt": _tensorrt}
    return [
        {"name": name, "state": states[name]() if name in states else ""}
        for name in backends.names()
        if name != "auto"
    ]


def _cpu() -> str:
    from streamssm.backends.cpu import import_onnxruntime
    from streamssm.errors import BackendError
    from streamssm.native.library import SWITCHED_OFF, library, switch

    try:
        version = f"onnxruntime {import_onnxruntime().__version__}"
    except BackendError as error:
        return f"not usable: {error}"
    if switch() == "off":
        return f"{version}; plain ONNX: {SWITCHED_OFF}"
    found = library()
    kernels = f"plain ONNX: {found}" if isinstance(found, str) else f"native kernels {found.instructions}"
    return f"{version}; {kernels}"


def _cuda() -> str:
    from streamssm.backends.cuda import unavailable

    why = unavailable()
    return "usable" if why is None else f"not usable: {why}"


def _tensorrt() -> str:
    """Which engines run here: those for this GPU, by what is installed."""
    from importlib.metadata import PackageNotFoundError, version

    from streamssm.tensorrt.local import compute_capability

    installed = []
    for package in ("tensorrt", "tensorrt-rtx"):
        try:
            installed.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    sm = compute_capability()
    if sm is None:
        return "not usable: there is no NVIDIA GPU"
    what = " and ".join(installed) or "none of tensorrt and tensorrt-rtx, as far as pip knows"
    return f"engines for sm_{sm}, with {what}"


def _print(found: dict[str, Any]) -> None:
    from streamssm.cli.show import show, table

    microphones = found["microphones"]
    if isinstance(microphones, str):
        show(f"no microphones: {microphones}")
    elif not microphones:
        show("no microphones")
    else:
        head = ["microphone", "", "channels", "Hz", ""]
        rows = [
            (str(m["number"]), m["name"], str(m["channels"]), f"{m['rate']:g}", "default" * m["default"])
            for m in microphones
        ]
        show(table(head, rows))
    show("", table(["backend", ""], [(one["name"], one["state"]) for one in found["backends"]]))
