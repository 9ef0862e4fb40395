"""The catalogue of public recordings: what is fetched, what each file is used for, who may see it.

One `Source` is one package at one version. Its `parts` say which files in it play which role.
TRAIN and TEST are disjoint by package, by speaker and by language.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

AUDIO_SUFFIXES = (".g722", ".ogg", ".wav", ".flac")


@dataclass(frozen=True)
class Part:
    """Files of a package that play one role.

    `keep` and `drop` are regular expressions searched in the path below the unpacked package.
    """

    role: str  # "speech", "noise" or "music"
    split: str  # "train" or "test"
    keep: str
    drop: str = "^$"

    def accepts(self, path: str) -> bool:
        """Whether this part claims the file at `path`."""
        return bool(re.search(self.keep, path)) and not re.search(self.drop, path)


@dataclass(frozen=True)
class Source:
    """One package at one version, with the licence of the recordings in it."""

    package: str
    version: str
    licence: str
    parts: tuple[Part, ...]
    origin: str = "debian"  # or "pypi"


# Languages heard in TEST, and their close relatives, are kept out of TRAIN.
_TEST_LANGUAGES = r"(nl|ru|el|it|de)"
_VOICES = r"(select|ack|attack|voice|talk|morning|laugh|scream|die|death|pain|summon|spell|cow|pig)"


def _train(role: str, keep: str, drop: str = "^$") -> Part:
    return Part(role, "train", keep, drop)


def _test(role: str, keep: str, drop: str = "^$") -> Part:
    return Part(role, "test", keep, drop)


SOURCES: tuple[Source, ...] = (
    Source(
        "asterisk-core-sounds-en-g722",
        "1.6.1-1",
        "CC-BY-SA-3.0",
        (_train("speech", r"\.g722$", r"/(silence|beep)"),),
    ),
    Source(
        "asterisk-core-sounds-es-g722",
        "1.6.1-1",
        "CC-BY-SA-3.0",
        (_train("speech", r"\.g722$", r"/(silence|beep)"),),
    ),
    Source(
        "asterisk-core-sounds-fr-g722",
        "1.6.1-1",
        "CC-BY-SA-3.0",
        (_train("speech", r"\.g722$", r"/(silence|beep)"),),
    ),
    Source(
        "fillets-ng-data-cs",
        "1.0.1-1.1",
        "GPL-2",
        (_train("speech", r"/cs/.*\.ogg$"),),
    ),
    Source(
        "tuxpaint-stamps-default",
        "2022.06.04-1",
        "GPL-2",
        (
            _train("speech", r"(_desc(_\w+)?|symbols/math/\w+)\.ogg$", rf"_{_TEST_LANGUAGES}\.ogg$"),
            _train("noise", r"/stamps/(animals|household|vehicles)/.*\.ogg$", r"_desc"),
            _test("speech", r"_desc_el\.ogg$"),
        ),
    ),
    Source(
        "klettres-data",
        "4:22.12.3-1",
        "GPL-2+",
        (
            _train(
                "speech",
                r"klettres/\w+/(alpha|syllab)/.*\.ogg$",
                rf"klettres/{_TEST_LANGUAGES}/",
            ),
        ),
    ),
    Source(
        "ktuberling-data",
        "4:22.12.3-1",
        "GPL-2+",
        (
            _train(
                "speech",
                r"ktuberling/sounds/\w+/.*\.(ogg|wav)$",
                rf"ktuberling/sounds/{_TEST_LANGUAGES}/",
            ),
        ),
    ),
    Source(
        "hedgewars-data",
        "1.0.2-6",
        "GFDL-1.3, GPL-2 and CC-BY-SA-3.0",
        (
            _train("speech", r"Sounds/voices/.*\.ogg$", r"(Russian|_ru)/"),
            _train("music", r"Data/Music/.*\.ogg$"),
            _train("noise", r"Data/Sounds/[^/]*\.ogg$", r"(Kiss|Yoohoo|hell_|hogchant|count|Hellish)"),
        ),
    ),
    Source(
        "freedroidrpg-data",
        "1.0-1",
        "GPL-2+",
        (
            _train("music", r"/music/.*\.ogg$"),
            _train("noise", r"/effects/.*\.ogg$", r"(bot_sounds|comments|Scream|Takeover)"),
        ),
    ),
    Source(
        "megaglest-data",
        "3.13.0-3",
        "CC-BY-SA-3.0",
        (
            _train("music", r"/music/.*\.ogg$"),
            _train("noise", r"\.(wav|ogg)$", rf"(?i)(/music/|{_VOICES})"),
        ),
    ),
    Source("sonic-pi-samples", "3.2.2~repack-8", "CC0-1.0", (_train("noise", r"\.flac$", "vox"),)),
    Source(
        "hydrogen-drumkits",
        "2017.09.19~dfsg-1",
        "GPL-2+, CC-BY-3.0 and CC-BY-SA-3.0",
        (_train("noise", r"\.(flac|wav|ogg)$", "(?i)(vox|voice)"),),
    ),
    Source(
        "extremetuxracer-data",
        "0.8.2-1",
        "GPL-2+",
        (_train("music", r"/music/.*\.ogg$"), _train("noise", r"/sounds/.*\.(wav|ogg)$")),
    ),
    Source(
        "fillets-ng-data-nl",
        "1.0.1-1.1",
        "GPL-2",
        (_test("speech", r"/nl/.*\.ogg$"),),
    ),
    Source(
        "asterisk-core-sounds-ru-g722",
        "1.6.1-1",
        "CC-BY-3.0",
        (_test("speech", r"\.g722$", r"/(silence|beep|\w+-2tone|tt-monkeys\.)"),),
    ),
    Source(
        "colobot-common-sounds",
        "0.2.0-2",
        "GPL-3+",
        (_test("noise", r"\.(ogg|wav)$"),),
    ),
    Source(
        "searchandrescue-data",
        "1.3.0-1.1",
        "GPL-2",
        (_test("noise", r"\.wav$", r"/music/splash01"),),  # that one is MIDI
    ),
    Source("ambience", "1.1.0", "MIT", (_test("noise", r"\.(ogg|wav|flac)$"),), "pypi"),
)


def audio_files(root: Path, source: Source, split: str, role: str) -> list[Path]:
    """Sorted files of one role that `source` offers to one split, below the cache folder."""
    home = root / source.package
    parts = [p for p in source.parts if p.split == split and p.role == role]
    found = (f for f in home.rglob("*") if f.suffix.lower() in AUDIO_SUFFIXES and f.is_file())
    return sorted(f for f in found if any(p.accepts("/" + str(f.relative_to(home))) for p in parts))
