"""What can be said of the page without a browser: it is whole, it is its own, and it needs nobody."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

import streamssm.serving

FOLDER = Path(streamssm.serving.__file__).parent / "page"
FILES = {path.name: path.read_text(encoding="utf-8") for path in sorted(FOLDER.iterdir())}
SCRIPTS = {name: text for name, text in FILES.items() if name.endswith(".js")}
NAMESPACE = 'xmlns="http://www.w3.org/2000/svg"'  # a name, not an address


class Tags(HTMLParser):
    """Every tag with its attributes."""

    def __init__(self, text: str):
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


TAGS = Tags(FILES["index.html"]).found
IDS = [attributes["id"] for _, attributes in TAGS if "id" in attributes]


@pytest.mark.parametrize("name", FILES)
def test_no_other_host_is_named(name):
    assert not re.findall(r"(?:\w+:)?//[\w.-]+\.\w+", FILES[name].replace(NAMESPACE, ""))


def test_nothing_is_inline():
    for tag, attributes in TAGS:
        assert not [key for key in attributes if key == "style" or key.startswith("on")], tag
        assert tag != "style"
        if tag == "script":
            assert attributes["src"]


def test_every_file_that_is_asked_for_is_there():
    asked = [value for _, attributes in TAGS for key, value in attributes.items() if key in ("src", "href")]
    files = [value.removeprefix("static/") for value in asked if value and not value.startswith("#")]
    imported = [name for text in SCRIPTS.values() for name in re.findall(r'"(?:\./)?([\w-]+\.js)"', text)]
    assert {*files, *imported} <= set(FILES)
    assert set(SCRIPTS) == {name for name in [*files, *imported] if name.endswith(".js")}


def test_every_element_that_is_looked_up_is_there_once():
    asked = {name for text in SCRIPTS.values() for name in re.findall(r'\$\("([\w-]+)"\)', text)}
    named = {
        name
        for _, attributes in TAGS
        for key in ("for", "aria-labelledby", "aria-describedby")
        for name in (attributes.get(key) or "").split()
    }
    assert len(set(IDS)) == len(IDS)
    assert asked | named <= set(IDS)


def test_only_text_is_put_into_the_page():
    for text in SCRIPTS.values():
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text
        )


def test_the_page_is_small():
    assert sum(map(len, FILES.values())) < 100_000
    assert max(text.count("\n") for text in FILES.values()) < 400


def test_the_server_has_all_of_it():
    from streamssm.serving.pages import read_pages

    assert set(read_pages()) == set(FILES)
