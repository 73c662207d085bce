"""The pictures of a run on one page: plain HTML that opens from the folder, with nothing from elsewhere.

The page shows everything without its script. With it, stories and methods can be chosen; the choice is kept in the
address (`#story=NAME&method=NAME`), so that it can be sent to somebody.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from urllib.parse import quote

from benchmarks.stories.report import Report, cell, shown
from benchmarks.stories.scores import Scored

PAGE = "index.html"

_STYLE = """
:root { color-scheme: light dark; --line: color-mix(in srgb, currentColor 20%, transparent); }
* { box-sizing: border-box; }
body { font: 16px/1.45 system-ui, sans-serif; margin: 0 auto; max-width: 90rem; padding: 0 1rem 3rem; }
h1 { font-size: 1.4rem; margin: 1rem 0 .25rem; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; margin: 2rem 0 .25rem; overflow-wrap: anywhere; }
h3 { font-size: 1rem; font-weight: 600; margin: 1rem 0 .25rem; }
p { margin: .25rem 0; max-width: 60rem; }
code { overflow-wrap: anywhere; font-size: .85rem; }
form { background: Canvas; border-bottom: 1px solid var(--line); display: flex; flex-wrap: wrap; gap: .5rem 1.5rem;
    padding: .75rem 0; position: sticky; top: 0; z-index: 1; }
label { align-items: center; display: flex; flex: 1 1 14rem; gap: .5rem; max-width: 30rem; }
select { flex: 1; font: inherit; min-height: 2.75rem; min-width: 0; }
.table { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; margin: .5rem 0; }
caption { font-weight: 600; padding: .25rem 0; text-align: left; }
td, th { border-bottom: 1px solid var(--line); padding: .35rem .6rem; text-align: right; vertical-align: bottom; }
td:first-child, th:first-child { text-align: left; }
.frames { display: grid; gap: .75rem; grid-template-columns: repeat(auto-fill, minmax(min(11rem, 45%), 1fr)); }
figure { margin: 0; min-width: 0; }
img { background: var(--line); display: block; height: auto; width: 100%; }
figcaption { font-size: .8rem; margin-top: .25rem; overflow-wrap: anywhere; }
.refused { color: #b3261e; }
[hidden] { display: none !important; }
@media (prefers-color-scheme: dark) { .refused { color: #ff8a80; } }
"""

_SCRIPT = """
const selects = [...document.querySelectorAll('select')];
const show = () => {
  for (const row of document.querySelectorAll('[data-story]')) {
    row.hidden = selects.some(({name, value}) => value && name in row.dataset && row.dataset[name] !== value);
  }
};
const read = () => {
  const asked = new URLSearchParams(location.hash.slice(1));
  for (const select of selects) {
    select.value = asked.get(select.name) ?? '';
    if (select.selectedIndex < 0) select.value = '';
  }
  show();
};
document.querySelector('form').hidden = false;
document.querySelector('form').addEventListener('change', () => {
  const chosen = new URLSearchParams(selects.filter(({value}) => value).map(({name, value}) => [name, value]));
  history.replaceState(null, '', '#' + chosen);
  show();
});
addEventListener('hashchange', read);
read();
"""


def gallery(report: Report, out: Path) -> str:
    """The page, for a file in `out`, to which the paths of pictures are relative."""
    facts = report.facts
    methods = [name for name, stories in report.rows.items() if any(story.outcome.folder for story in stories)]
    names = list(dict.fromkeys(story.outcome.asked.name for own in report.rows.values() for story in own))
    by_story = {
        name: {method: _of(report.rows[method], name) for method in report.rows if method in report.methods}
        for name in names
    }
    title = escape(f"{facts['benchmark']}, {facts['model']}")
    body = "\n".join(
        [
            f"<h1>{title}</h1>",
            f"<p><code>{escape(facts['command'])}</code>, {escape(facts['date'])}</p>",
            *_tables(report),
            _notes(report.notes()),
            # Shown by the script, without which it would do nothing.
            f"<form hidden>{_choice('story', 'Story', names)}{_choice('method', 'Method', methods)}</form>",
            "<main>",
            *(_story(name, own, out) for name, own in by_story.items()),
            "</main>",
        ]
    )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<link rel="icon" href="data:,">
<style>{_STYLE}</style>
</head>
<body>
{body}
<script>{_SCRIPT}</script>
</body>
</html>
"""


def write_gallery(report: Report, out: Path) -> Path:
    """Writes index.html and returns its path."""
    file = out / PAGE
    file.write_text(gallery(report, out), encoding="utf-8")
    return file


def _of(stories: Sequence[Scored], name: str) -> Scored | None:
    return next((story for story in stories if story.outcome.asked.name == name), None)


def _choice(name: str, label: str, values: Sequence[str]) -> str:
    options = "".join(f"<option>{escape(value)}</option>" for value in values)
    return f'<label>{label} <select name="{name}"><option value="">all</option>{options}</select></label>'


def _tables(report: Report) -> list[str]:
    tables = []
    for group in report.groups():
        figures = group.figures()
        columns = shown(report.columns, figures)
        head = "".join(f'<th scope="col">{escape(column.heading)}</th>' for column in columns)
        lines = "".join(
            f'<tr><th scope="row">{escape(name)}</th>'
            + "".join(f"<td>{escape(cell(column, own.get(column.key)))}</td>" for column in columns)
            + "</tr>"
            for name, own in figures.items()
        )
        tables.append(
            f'<div class="table"><table><caption>{escape(group.heading)}</caption>'
            f'<thead><tr><th scope="col">method</th>{head}</tr></thead><tbody>{lines}</tbody></table></div>'
        )
    return tables


def _notes(notes: Sequence[str]) -> str:
    if not notes:
        return ""
    lines = "".join(f"<p>{escape(note)}</p>" for note in notes)
    return f"<details><summary>Not here: {len(notes)}</summary>{lines}</details>"


def _story(name: str, methods: Mapping[str, Scored | None], out: Path) -> str:
    asked = next(story.outcome.asked for story in methods.values() if story is not None)
    cast = "; ".join(f"{who}: {character.description}" for who, character in asked.story.characters.items())
    rows = "".join(_row(name, method, story, out) for method, story in methods.items() if story is not None)
    return (
        f'<section data-story="{escape(name)}"><h2>{escape(name)}</h2><p>{escape(cast)}</p>\n{rows}</section>'
    )  # fmt: skip


def _row(name: str, method: str, story: Scored, out: Path) -> str:
    head = f'<div data-story="{escape(name)}" data-method="{escape(method)}"><h3>{escape(method)}</h3>'
    outcome = story.outcome
    if outcome.folder is None:
        return f'{head}<p class="refused">{escape(outcome.refused)}</p></div>\n'
    files = sorted(outcome.folder.glob("frame-*.png"))
    figures = "".join(_figure(file.relative_to(out), prompt) for file, prompt in zip(files, story.prompts, strict=True))
    return f'{head}<div class="frames">{figures}</div></div>\n'


def _figure(file: Path, prompt: str) -> str:
    source, text = quote(file.as_posix()), escape(prompt)
    return f'<figure><img src="{source}" alt="{text}" loading="lazy"><figcaption>{text}</figcaption></figure>\n'
