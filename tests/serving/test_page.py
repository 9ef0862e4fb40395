"""The page in a real Chromium, against a real server; a wav is its microphone.

``STREAMSSM_PICTURES=docs python -m pytest tests/serving/test_page.py -k recording``
draws docs/page*.png anew.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
from chromium import Tab, browser, program
from page_tools import SPEECH, ServerProcess, clip, read_wav, run_rows

pytest.importorskip("aiohttp", reason="the page comes from the server: pip install 'streamssm[serve]'")
pytest.importorskip("websockets", reason="Chromium is driven over a websocket: pip install websockets")
pytestmark = pytest.mark.skipif(program() is None, reason="no Chromium: apt-get install chromium")

STATUS = "document.querySelector('#status-text').innerText"
READY = "!document.querySelector('#choose').disabled"
NEAR = 0.1  # seconds: the browser's conversion to the model's rate is its own
PICTURE = 200_000  # bytes


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    process = ServerProcess("vad", "--slots", "4")
    yield process
    process.close()


@pytest.fixture(scope="module")
def chrome(tmp_path_factory) -> Iterator[Tab]:
    with browser(
        tmp_path_factory.mktemp("chromium"), f"--use-file-for-fake-audio-capture={SPEECH}%noloop"
    ) as tab:
        yield tab


@pytest.fixture
def tab(chrome: Tab, server: ServerProcess) -> Iterator[Tab]:
    """The page, freshly opened; nothing may have gone wrong in it, and it may have asked nobody else."""
    chrome.events.clear()
    chrome.view(1080, 820)
    show(chrome, server.url)
    yield chrome
    assert not chrome.problems()
    hosts = {address.partition("://")[2].partition("/")[0] for address in chrome.addresses()}
    assert hosts <= {server.url.partition("://")[2].strip("/"), ""}  # "": blob: and data:


def show(tab: Tab, url: str) -> None:
    tab.open(url)
    tab.value("sessionStorage.clear()")
    tab.wait(READY)


def finished(tab: Tab, seconds: float = 20) -> None:
    tab.wait(f"{STATUS} === 'Finished'", seconds)


def heard(tab: Tab, clock: str) -> None:
    """Until the microphone has been heard for so long."""
    tab.wait(f"(said => said >= '{clock}' && said !== '–')(document.querySelector('#input').innerText)")


def saved_rows(tab: Tab, folder: Path, name: str) -> list[dict]:
    """What the Save button writes to disk."""
    tab.call("Page.setDownloadBehavior", behavior="allow", downloadPath=str(folder))
    tab.click("#save")
    path = folder / name
    deadline = time.monotonic() + 10
    # the browser reserves the name with an empty file, which it then replaces by the whole one
    while not path.exists() or not path.stat().st_size:
        assert time.monotonic() < deadline, sorted(folder.iterdir())
        time.sleep(0.02)
    return [json.loads(line) for line in path.read_text().splitlines()]


def times(rows: list[dict]) -> np.ndarray:
    return np.array([row["time"] for row in rows])


def listed(tab: Tab) -> list[list[str]]:
    """The table of events, cell by cell."""
    return tab.value(
        "[...document.querySelector('#events').rows].map(r => [...r.cells].map(c => c.innerText))"
    )


def test_dropped_file_gives_exactly_the_events_of_run(tab, tmp_path):
    tab.drop("body", SPEECH)
    finished(tab)
    expected = run_rows(SPEECH)
    assert saved_rows(tab, tmp_path, "speech.events.jsonl") == expected
    assert listed(tab) == [
        ["speech", *(f"0:{time:05.2f}" for time in pair), f"{pair[1] - pair[0]:.2f} s"]
        for pair in times(expected).reshape(-1, 2).tolist()
    ]
    assert tab.text("#count") == "4"


@pytest.mark.parametrize(
    ("rate", "channels", "suffix"), [(44100, 2, "wav"), (48000, 1, "flac"), (22050, 1, "ogg")]
)
def test_file_of_another_rate_gives_exactly_the_events_of_run(tab, tmp_path, rate, channels, suffix):
    soundfile, soxr = pytest.importorskip("soundfile"), pytest.importorskip("soxr")
    own, samples = read_wav(SPEECH)
    sound = soxr.resample(samples[: 4 * own].astype(np.float64) / 2**15, own, rate)
    if channels == 2:  # what is only in one channel counts half
        sound = np.stack([sound, np.zeros_like(sound)], 1)
    path = tmp_path / f"other.{suffix}"
    soundfile.write(path, sound, rate)
    tab.choose("#file", path)
    finished(tab)
    got, expected = saved_rows(tab, tmp_path, "other.events.jsonl"), run_rows(path)
    assert expected
    if suffix == "ogg":  # lossy: two decoders need not agree to the last bit
        assert [row["event"] for row in got] == [row["event"] for row in expected]
        np.testing.assert_allclose(times(got), times(expected), atol=NEAR)
    else:
        assert got == expected


def test_models_of_all_kinds(chrome, tmp_path):
    """One of another rate, one without events, one that reads no audio."""
    from toy_models import TOYS
    from voice_toy import voice_toy

    models = [voice_toy().write(tmp_path), *(TOYS[name]().write(tmp_path) for name in ("frames", "ema"))]
    several = ServerProcess(*models)
    with contextlib.closing(several):
        show(chrome, several.url)
        options = "[...document.querySelector('#model').options].map(o => [o.text, o.disabled])"
        assert chrome.value(options) == [["voice", False], ["frames", False], ["ema (reads features)", True]]
        chrome.choose("#file", SPEECH)
        finished(chrome)
        rows = run_rows(SPEECH, models[0])
        assert rows
        assert saved_rows(chrome, tmp_path, "speech.events.jsonl") == rows
        chrome.value(
            "m = document.querySelector('#model'), m.value = 'frames', m.dispatchEvent(new Event('change'))"
        )
        chrome.choose("#file", clip(tmp_path / "clip.wav", 2))
        finished(chrome, 40)
        assert chrome.text("#legend").split() == ["waveform", "y.0", "y.1", "y.2"]
        assert "no event rule" in chrome.text("#no-events")
        assert chrome.value("document.querySelector('#save').disabled")
        assert chrome.text("#input") == "0:02.0"


def test_microphone_gives_the_events_of_the_recording(tab, tmp_path):
    expected = run_rows(SPEECH)
    tab.click("#start")
    tab.wait(f"{STATUS} === 'Listening'")
    tab.wait("document.querySelector('#events .open') !== null")  # an event shows while it lasts
    tab.wait("document.querySelectorAll('#events tr:not(.open)').length === 4", 30)
    pictures(tab, Path(os.environ.get("STREAMSSM_PICTURES", tmp_path)))
    tab.click("#start")
    finished(tab)
    got = saved_rows(tab, tmp_path, "vad.events.jsonl")
    assert [(row["event"], row["label"]) for row in got] == [(row["event"], row["label"]) for row in expected]
    # a microphone is opened a moment before or after its first sample: all events move alike
    moved = times(got) - times(expected)
    assert abs(np.median(moved)) < 0.5
    np.testing.assert_allclose(moved, np.median(moved), atol=NEAR)
    for figure in ("#trip", "#server", "#algorithmic"):
        assert tab.text(figure).endswith(" ms")


def test_microphone_outlives_the_server(chrome, tmp_path):
    """The server is killed in the middle of the first word and comes back: nothing that was said is lost."""
    first = ServerProcess("vad")
    chrome.view(1080, 820)
    show(chrome, first.url)
    chrome.click("#start")
    chrome.wait("document.querySelector('#events .open') !== null")
    first.close()
    chrome.wait(f"{STATUS}.startsWith('Connection lost')")
    with contextlib.closing(ServerProcess("vad", port=first.port)):
        chrome.wait(f"{STATUS} === 'Listening'")
        chrome.wait("document.querySelectorAll('#events tr').length === 3")
        chrome.click("#start")
        finished(chrome)
        got = saved_rows(chrome, tmp_path, "vad.events.jsonl")
    # the word is two events now, the second of which begins where the first was cut
    assert [row["event"] for row in got[:5]] == ["start", "end", "start", "end", "start"]
    assert got[1]["cut"] is True
    assert 0 <= got[2]["index"] - got[1]["index"] <= 20
    assert not [row for row in got if "gap" in row]
    expected = times(run_rows(SPEECH))
    np.testing.assert_allclose(
        np.diff([got[0]["time"], got[3]["time"], got[4]["time"]]), np.diff(expected[:3]), atol=NEAR
    )


def test_full_server_is_waited_for(chrome):
    from websockets.sync.client import connect

    only = ServerProcess("vad", "--slots", "1")
    with contextlib.closing(only):
        show(chrome, only.url)
        with connect(only.url.replace("http", "ws") + "v1/stream?model=vad") as other:
            json.loads(other.recv())
            chrome.choose("#file", SPEECH)
            chrome.wait(f"{STATUS}.startsWith('All streams are taken')")
            assert chrome.text("#start") == "Stop"
        finished(chrome)
        assert chrome.text("#count") == "4"


def test_token_is_asked_for(chrome, tmp_path):
    secret = "a token & more?"
    guarded = ServerProcess("vad", "--token", secret)
    with contextlib.closing(guarded):
        chrome.open(guarded.url)
        chrome.wait("document.activeElement.id === 'token'")
        chrome.type("wrong")
        chrome.key("Enter", 13, "\r")
        chrome.wait("document.querySelector('#token-wrong').innerText !== ''")
        chrome.type(secret)
        chrome.key("Enter", 13, "\r")
        chrome.wait(READY)
        chrome.choose("#file", SPEECH)
        finished(chrome)
        assert chrome.text("#count") == "4"
        chrome.value("sessionStorage.clear()")
        # a link may bring the token along; it does not stay in the address
        chrome.open("about:blank")
        chrome.open(f"{guarded.url}#token={quote(secret)}")
        chrome.wait(READY)
        assert chrome.value("location.href") == guarded.url


@pytest.mark.parametrize("content", [b"", b"no audio at all, only words"])
def test_file_that_is_no_audio_is_refused(tab, tmp_path, content):
    path = tmp_path / "notes.wav"
    path.write_bytes(content)
    tab.drop("body", path)
    tab.wait("!document.querySelector('#notice').hidden")
    assert "notes.wav is" in tab.text("#notice")
    assert tab.text("#status-text") == "Ready"
    tab.drop("body", SPEECH)
    finished(tab)
    assert tab.value("document.querySelector('#notice').hidden")


def test_unplugged_page_can_be_used_again(tab):
    """Stopped and started over and over, the page takes one slot at a time and gives it back."""
    for _ in range(3):
        tab.click("#start")
        tab.wait(f"{STATUS} === 'Listening'")
        heard(tab, "0:00.2")
        tab.key("Escape", 27)
        finished(tab)
    tab.click("#clear")
    assert tab.text("#count") == "0"
    free = tab.value("fetch('v1/models').then(r => r.json()).then(({models}) => models[0].free)")
    assert free == 4


def test_keyboard_and_screen_reader(tab):
    tab.call("Page.setInterceptFileChooserDialog", enabled=True)
    seen = []
    for _ in range(4):
        tab.key("Tab", 9)
        seen.append(tab.value("document.activeElement.id"))
    assert seen == ["", "model", "start", "choose"]  # first a link that skips to the controls
    tab.key("Enter", 13, "\r")
    tab.wait("true")
    assert tab.told("Page.fileChooserOpened")
    tab.call("Page.setInterceptFileChooserDialog", enabled=False)
    tab.choose("#file", SPEECH)
    finished(tab)
    tree = tab.call("Accessibility.getFullAXTree")["nodes"]
    roles = ("button", "combobox", "textbox", "image", "table", "region", "progressbar")
    seen = [(n["role"]["value"], n.get("name", {}).get("value")) for n in tree if not n["ignored"]]
    assert not [node for node in seen if node[0] in roles[:-3] and not node[1]]
    assert ("button", "Show speech from 0:00.53") in seen
    assert any(role == "image" and "0:11.7 heard, 4 events" in (name or "") for role, name in seen)
    tab.value("document.querySelector('#timeline').focus()")
    before = tab.value("document.querySelector('#timeline').toDataURL()")
    tab.key("+", 187, "+")
    tab.wait(f"document.querySelector('#timeline').toDataURL() !== {json.dumps(before)}")


def pictures(tab: Tab, folder: Path) -> None:
    """Desktop and phone, light and dark."""
    light = look(tab, folder / "page.png", 1000, 820, scale=1.25)
    dark = look(tab, folder / "page-dark.png", 1000, 820, scale=1.25, dark=True)
    phone = look(tab, folder / "page-phone.png", 360, 740, scale=1.5, phone=True)
    assert len({light, dark, phone}) == 3
    tab.view(1080, 820)


@pytest.mark.parametrize("width", [320, 360, 768, 1920])
def test_nothing_is_wider_than_the_window(tab, tmp_path, width):
    look(tab, tmp_path / "before.png", width, 740)
    tab.choose("#file", SPEECH)
    finished(tab)
    look(tab, tmp_path / "after.png", width, 740, dark=True)


def look(tab: Tab, path: Path, width: int, height: int, **how: object) -> bytes:
    """A picture, and what must hold at any size: no scrolling sideways, and buttons that a thumb hits."""
    tab.view(width, height, **how)
    # two pictures later everything has its new size and colour
    tab.value("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    assert tab.value("document.documentElement.scrollWidth") <= width
    small = (
        "[...document.querySelectorAll('button')].filter(b => b.offsetParent && b.offsetHeight < 30).length"
    )
    assert tab.value(small) == 0
    picture = tab.screenshot(path)
    assert 10_000 < len(picture) < PICTURE
    return picture


def test_what_a_server_misses_is_told(chrome, tmp_path):
    """Away for longer than the page keeps samples: a gap of exactly the items that are missing."""
    first = ServerProcess("vad")
    show(chrome, first.url)
    chrome.value(
        "import('/static/outbox.js').then(({Outbox}) => { const push = Outbox.prototype.push;"
        "Outbox.prototype.push = function (samples) { this.limit = 4001; push.call(this, samples); }; })"
    )
    chrome.click("#start")
    heard(chrome, "0:00.5")
    first.close()
    chrome.wait(f"{STATUS}.startsWith('Connection lost')")
    heard(chrome, "0:02.0")
    with contextlib.closing(ServerProcess("vad", port=first.port)):
        chrome.wait(f"{STATUS} === 'Listening'")
        chrome.wait("document.querySelector('#events .gap') !== null")
        chrome.click("#start")
        finished(chrome)
        (gap,) = [row for row in saved_rows(chrome, tmp_path, "vad.events.jsonl") if "gap" in row]
    assert gap["gap"] == "disconnected"
    assert 1 < gap["seconds"] < 15
    assert gap["items"] == gap["seconds"] * 16000
    assert gap["items"] % 160 == 0  # results begin with whole hops
