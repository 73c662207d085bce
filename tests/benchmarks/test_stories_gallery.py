"""The gallery: one page that shows every picture with its prompt, needs nothing from elsewhere, and can be narrowed."""

import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest
from PIL import Image

from benchmarks.stories.clip import CLIP_T
from benchmarks.stories.gallery import write_gallery
from benchmarks.stories.generate import Cost, Outcome
from benchmarks.stories.methods import METHODS
from benchmarks.stories.metric import LeftOut
from benchmarks.stories.report import Report
from benchmarks.stories.scores import COSTS, Scored
from benchmarks.stories.stories import BenchmarkStory
from storyloom import Story

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
NAMES = ("first", 'odd & "named" <b>')
PROMPTS = ('a "quoted" <script>alert(1)</script> & prompt', "another prompt")


class Page(HTMLParser):
    """What a page shows and loads."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out")
    rows: dict[str, list[Scored]] = {"none": [], "amsa": []}
    for row in rows:
        for place, name in enumerate(NAMES):
            story = BenchmarkStory(name, Story(characters={"mia": "a girl"}, frames=["{mia}"] * 2), (("mia",),) * 2)
            if row == "amsa" and place == 1:
                rows[row].append(Scored(Outcome(story, refused="too <long>")))
                continue
            folder = out / row / name
            folder.mkdir(parents=True)
            for number in (1, 2):
                Image.new("RGB", (64, 64), "teal").save(folder / f"frame-0{number}.png")
            outcome = Outcome(story, folder, Cost(4.0, "server", 0.5))
            rows[row].append(Scored(outcome, PROMPTS, {"clip_t": [0.25, 0.5 + place]}))
    facts = {"benchmark": "a & b", "model": "tiny", "command": "python -m x", "date": "2026-01-01"}
    methods = {name: METHODS[name] for name in rows}
    report = Report((CLIP_T, *COSTS), methods, rows, [LeftOut(("DINO-I",), "give --dino")], facts)
    return write_gallery(report, out)


def test_every_picture_is_there_with_its_prompt_and_a_relative_path(page: Path) -> None:
    pictures = Page(page).all("img")
    assert len(pictures) == 6
    assert [picture["alt"] for picture in pictures] == [*PROMPTS] * 3
    for picture in pictures:
        source = picture["src"] or ""
        assert not source.startswith(("/", "http", "file"))
        assert (page.parent / unquote(source)).is_file()


def test_nothing_comes_from_elsewhere_and_no_text_is_taken_for_markup(page: Path) -> None:
    shown = Page(page)
    assert not re.search(r"https?:|//\w|@import|url\(", page.read_text())
    assert len(shown.all("script")) == 1
    assert not shown.all("b")
    assert [link["href"] for link in shown.all("link")] == ["data:,"]
    assert "too <long>" in shown.text


def test_figures_and_what_is_left_out_are_on_the_page(page: Path) -> None:
    text = Page(page).text
    assert "CLIP-T" in text
    assert "37.5" in text
    assert "left out: DINO-I; give --dino" in text


def dumped(page: Path, script: str, hash_: str = "") -> str:
    """What a script finds on the page, in a browser."""
    probe = page.with_name("probe.html")
    report = f"<script>addEventListener('load', () => {{ document.title = 'found: ' + ({script}); }})</script></body>"
    probe.write_text(page.read_text(encoding="utf-8").replace("</body>", report), encoding="utf-8")
    command = [
        str(CHROMIUM), "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
        f"--user-data-dir={page.parent / 'browser'}", "--dump-dom", f"{probe.as_uri()}{hash_}",
    ]  # fmt: skip
    shown = subprocess.run(command, capture_output=True, text=True, timeout=240, check=True).stdout
    found = re.search(r"<title>found: (.*?)</title>", shown)
    assert found is not None, shown[:2000]
    return found[1]


SHOWN = "[...document.images].filter(picture => picture.offsetParent).length"


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine")
def test_stories_and_methods_are_chosen_in_a_browser(page: Path) -> None:
    choose = (
        "(() => { const found = [" + SHOWN + "]; const [story, method] = document.querySelectorAll('select');"
        "const pick = (select, value) => { select.value = value;"
        " select.dispatchEvent(new Event('change', {bubbles: true})); found.push(" + SHOWN + "); };"
        "pick(method, 'none'); pick(story, 'first'); pick(method, 'amsa'); pick(story, ''); pick(method, '');"
        "pick(method, 'amsa'); return found + ' ' + location.hash; })()"
    )
    assert dumped(page, choose) == "6,4,2,2,2,6,2 #method=amsa"


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine")
def test_an_address_keeps_the_choice_and_a_phone_shows_the_page_without_scrolling(page: Path) -> None:
    # Chromium has no window as narrow as a phone; its page can be.
    look = "(() => { document.body.style.width = '360px'; return document.body.scrollWidth + ' ' + "
    look += SHOWN + " + ' ' + [...document.images].every(one => one.naturalWidth || one.loading === 'lazy'); })()"
    assert dumped(page, look, "#story=first&method=none") == "360 2 true"
