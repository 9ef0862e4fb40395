"""The catalogue of public recordings: what is fetched, what each file is used for, who may see it.

One `Source` is one package at one version. Its `parts` say which files in it play which role.
TRAIN and TEST are disjoint by package, by speaker and by language; FAR, for validation only, shares
no package with TRAIN.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

AUDIO_SUFFIXES = (".g722", ".gsm", ".ogg", ".opus", ".wav", ".flac")


@dataclass(frozen=True)
class Part:
    """Files of a package that play one role.

    `keep` and `drop` are regular expressions searched in the path below the unpacked package.
    """

    role: str  # "speech", "noise" or "music"
    split: str  # "train", "far" or "test"
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


# Languages heard in TEST are kept out of TRAIN, and Italian and German with them. Relatives are not:
# Ukrainian, Belarusian, Bulgarian and Low Saxon are heard in training.
_TEST_LANGUAGES = r"(nl|ru|el|it|de)"
_VOICES = r"(select|ack|attack|voice|talk|morning|laugh|scream|die|death|pain|summon|spell|cow|pig)"


def _train(role: str, keep: str, drop: str = "^$") -> Part:
    return Part(role, "train", keep, drop)


def _far(role: str, keep: str, drop: str = "^$") -> Part:
    return Part(role, "far", keep, drop)


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
        "warzone2100-data",
        "4.3.3-3",
        "GPL-2+",
        (
            _train(
                "speech",
                r"/audio/(tutorial|extra|countdown|memressp|nexus|vtoltalk|multi|proxmessages|taunts|trnsppil|coltive)/",
                r"(laugh|beep|/multi/(emp|beacon)|scream)",
            ),
            _train("noise", r"/audio/sfx/", r"/misc/"),
        ),
    ),
    Source(
        "0ad-data",
        "0.0.26-1",
        "CC-BY-SA-3.0",
        (
            _train("speech", r"/audio/voice/(napatan|persian|latin)/"),
            _train("music", r"/audio/music/"),
            _train(
                "noise",
                r"/audio/(ambient|attack|resource|interface|actor/(fauna|mounted|ship|gate|singlesteps))/",
            ),
        ),
    ),
    Source("gcin-voice", "0~20170223-3", "CC-BY-3.0, GPL-3 or LGPL-3", (_train("speech", r"\.ogg$"),)),
    Source("warzone2100-music", "4.3.3-3", "GPL-2+ and others", (_train("music", r"\.(ogg|opus)$"),)),
    Source("wesnoth-1.16-music", "1:1.16.9-1", "GPL-2+", (_train("music", r"\.ogg$"),)),
    Source("ufoai-music", "2.5-2", "GPL-2, CC-BY-SA-3.0, CC-BY-3.0", (_train("music", r"\.ogg$"),)),
    Source(
        "ufoai-sound",
        "2.5-2",
        "GPL-2, CC-BY-SA-3.0, CC-BY-3.0",
        (_train("noise", r"\.(ogg|wav)$", r"/(civilians|soldiers|aliens|seq)/"),),
    ),
    Source(
        "openarena-data",
        "0.8.5split-14",
        "GPL-2+",
        (_train("noise", r"sound/(world|items|weapons|movers|player/footsteps)/.*\.(ogg|wav)$"),),
    ),
    Source("asterisk-moh-opsound-g722", "2.03-1.1", "CC-BY-SA-3.0", (_train("music", r"\.g722$"),)),
    Source(
        "btanks-data",
        "0.9.8083-9",
        "GPL-2+",
        (
            _train("music", r"/tunes/.*\.ogg$"),
            _train("noise", r"/sounds/.*\.ogg$", r"(laugh|dead|scream|zombie)"),
        ),
    ),
    Source(
        "frozen-bubble-data", "2.212-11", "GPL-2", (_train("music", r"/snd/.*\.ogg$", "(snore|applause)"),)
    ),
    Source(
        "hyperrogue-music",
        "12.0q-1",
        "CC-BY-SA-3.0, CC-BY-SA-4.0, CC-BY-3.0",
        (
            _train("music", r"/music/.*\.ogg$"),
            _train("noise", r"/sounds/.*\.ogg$", r"(princ|die-|seen-|troll|message|dzia)"),
        ),
    ),
    Source("asterisk-prompt-fr-armelle", "20070613-2.2", "BSD", (_far("speech", r"\.gsm$", "beep"),)),
    Source("asterisk-prompt-es-co", "0.20070403-2.1", "GPL-2", (_far("speech", r"\.gsm$", "beep"),)),
    Source(
        "unknown-horizons",
        "2019.1-6",
        "GPL-2+, CC-BY-SA-3.0",
        (
            _far("speech", r"/voice/(en|fr)/.*\.ogg$"),
            _far("music", r"/music/.*\.ogg$"),
            _far("noise", r"/sounds/.*\.ogg$"),
        ),
    ),
    Source("singularity-music", "007-2", "CC-BY-SA-3.0", (_far("music", r"\.ogg$"),)),
    Source(
        "lincity-ng-data",
        "2.9~git20150314-5",
        "GPL-2+",
        (
            _far("music", r"/music/.*\.ogg$"),
            _far("noise", r"/sounds/.*\.wav$", r"(Croud|School|Commune|Market|University|Health)"),
        ),
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
