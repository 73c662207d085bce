"""Writes what a run about discovery found: raw numbers, a page, a figure and a contact sheet."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks.identity.discovered import HeldOut, Mixed, difference, interval, nearness

EMBEDDINGS = {"recogniser": "the package's recogniser, which the filter sees", "judge": "the judge, which it does not"}
HELD_OUT = {"held_out": "held out", "folds": "cross-validated"}
TYPICAL: dict[str, bool | None] = {"all": None, "typical": True, "others": False}

Person = Mapping[str, Any]


def write(
    folder: Path, facts: Mapping[str, Any], people: Sequence[Person], mixed: Sequence[Mixed], pictures: Image.Image
) -> str:
    """Writes discovery.json, discovery.md, discovery.png and discovery-pictures.png; returns the page."""
    folder.mkdir(parents=True, exist_ok=True)
    figures = summary(people) | {"strangers": _strangers(mixed)}
    told = {**facts, "summary": figures, "people": people}
    (folder / "discovery.json").write_text(json.dumps(told, indent=1, default=str) + "\n", encoding="utf-8")
    page = _page(facts, figures, people)
    (folder / "discovery.md").write_text(page, encoding="utf-8")
    pictures.save(folder / "discovery-pictures.png")
    _plot(people, figures, folder / "discovery.png")
    return page


def summary(people: Sequence[Person]) -> dict[str, Any]:
    """All figures: of candidates by embedding, way of holding out and typicality; of stories by embedding."""
    near = {
        embedding: {
            way: {name: nearness(_held_out(people, way, embedding), typical=which) for name, which in TYPICAL.items()}
            for way in HELD_OUT
        }
        for embedding in EMBEDDINGS
    }
    return {"nearness": near, "stories": {embedding: _stories(people, embedding) for embedding in EMBEDDINGS}}


def _strangers(mixed: Sequence[Mixed]) -> list[dict[str, Any]]:
    return [
        {"filter": one.filter, "share": one.share, "kept": round(one.kept, 4)}
        | {embedding: nearness(own) for embedding, own in one.held_out.items()}
        for one in mixed
    ]


def _strangers_table(figures: Mapping[str, Any]) -> str:
    lines = [
        "| filter | strangers | among the kept | embedding | number | nearer to filtered mean | nearer by |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in figures["strangers"]:
        for embedding in EMBEDDINGS:
            own = one[embedding]
            lines.append(
                f"| {one['filter']} | {one['share']:.0%} | {one['kept']:.1%} | {embedding} | {own['candidates']} | "
                f"{_cell(own['share_nearer'], 2)} | {_cell(own['nearer_by'])} |"
            )
    return "\n".join(lines)


def _held_out(people: Sequence[Person], way: str, embedding: str) -> list[list[HeldOut]]:
    return [[HeldOut(**one) for one in person[way][embedding]] for person in people]


def _stories(people: Sequence[Person], embedding: str) -> dict[str, Any]:
    settings = list(people[0]["stories"])
    columns = ("among", "to_identity", "found")
    values = {
        setting: {name: [person["stories"][setting][embedding][name] for person in people] for name in columns}
        for setting in settings
    }
    first = settings[0]
    return {
        setting: {
            name: {
                "mean": _mean(own[name]),
                "less_text_alone": None if setting == first else difference(own[name], values[first][name]),
            }
            for name in columns
        }
        for setting, own in values.items()
    }


def _mean(values: Sequence[float | None]) -> dict[str, Any] | None:
    found = interval([[value] for value in values if value is not None])
    return (
        None if found is None else {"mean": found.mean, "low": found.low, "high": found.high, "people": found.stories}
    )


def _cell(told: Mapping[str, Any] | None, places: int = 3) -> str:
    if told is None:
        return "-"
    return f"{told['mean']:.{places}f} [{told['low']:.{places}f}, {told['high']:.{places}f}]"


def _nearness_table(figures: Mapping[str, Any]) -> str:
    lines = [
        "| embedding | candidates | | number | nearer to filtered mean | nearer by | 1 - cosine: filtered | plain |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for embedding, ways in figures["nearness"].items():
        for way, groups in ways.items():
            for name, one in groups.items():
                cells = (
                    _cell(one["share_nearer"], 2),
                    *(_cell(one[key]) for key in ("nearer_by", "filtered", "plain")),
                )
                lines.append(f"| {embedding} | {HELD_OUT[way]} | {name} | {one['candidates']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _stories_table(figures: Mapping[str, Any]) -> str:
    lines = [
        "| embedding | setting | frame agreement | less text alone | to the identity | less text alone | faces found |",
        "|---|---|---|---|---|---|---|",
    ]
    for embedding, settings in figures["stories"].items():
        for setting, own in settings.items():
            among, identity = own["among"], own["to_identity"]
            cells = (
                _cell(among["mean"]),
                _cell(among["less_text_alone"]),
                _cell(identity["mean"]),
                _cell(identity["less_text_alone"]),
                _cell(own["found"]["mean"], 2),
            )
            lines.append(f"| {embedding} | {setting} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _people_table(people: Sequence[Person]) -> str:
    lines = [
        "| | described as | candidates with a face | alike: recogniser | judge | kept |",
        "|---|---|---|---|---|---|",
    ]
    for one in people:
        alike = one["alike"]
        kept = ", ".join(map(str, one["kept"]))
        lines.append(
            f"| {one['index']} | {one['description']} | {one['compared']} | {alike['recogniser']:.2f} | "
            f"{alike['judge']:.2f} | {kept} |"
        )
    return "\n".join(lines)


def _page(facts: Mapping[str, Any], figures: Mapping[str, Any], people: Sequence[Person]) -> str:
    return f"""# Discovery: is the filtered mean nearer, and do frames agree more?

`{facts["command"]}`

{len(people)} held-out people; of each {facts["candidates"]} candidates through `DiscoverCharacter`, and
{facts["held_out"]} with another seed; {facts["solver"]}, {facts["steps"]} steps. Means with 95 % bootstrap intervals
over people and what is of each. Left out, since fewer than four candidates show a face:
{", ".join(facts["left_out"]) or "nobody"}.

## Held-out candidates

{_nearness_table(figures)}

Distances are to the mean of the candidates that the filter kept, and to that of all. "Held out" are the candidates of
another seed; "cross-validated" is every candidate of either seed, held out once in one of five folds while the rest are
filtered anew. "Typical" are those that the filter's first round keeps when it sees the held-out ones alone. The filter
sees the recogniser's embedding; the judge has seen neither it nor the model.

## Strangers among the candidates

{_strangers_table(figures)}

Candidates of the other people in the places of some, drawn by chance; cross-validated as above, with candidates of the
person held out. "Ours" has one singular vector and leaves at least nine; "the paper's" has ten for 64, in proportion,
and three rounds in any case.

## Stories

{_stories_table(figures)}

Four frames of each person in different scenes, each made on its own, from the same noise in all settings. Agreement:
mean cosine of faces over all pairs of frames. "To the identity": cosine of a frame's face to the mean of the kept
candidates.

## People

{_people_table(people)}

"Alike" is the mean cosine over all pairs of candidates of one description.

![Distances of held-out candidates, and agreement of frames by setting](discovery.png)

![Kept candidates, then frames: text alone, identity, re-denoised](discovery-pictures.png)
"""


def _plot(people: Sequence[Person], figures: Mapping[str, Any], path: Path) -> None:
    import matplotlib as mpl  # Not at the top: the tests of the rest need no plotter.

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 4, figsize=(16, 4), layout="constrained")
    for panel, (embedding, says) in zip(panels, EMBEDDINGS.items(), strict=False):
        own = [one for person in _held_out(people, "folds", embedding) for one in person]
        for typical, label in ((True, "typical"), (False, "others")):
            points = [(one.plain, one.filtered) for one in own if one.typical == typical]
            panel.scatter(*zip(*points, strict=True) if points else ((), ()), s=8, alpha=0.7, label=label)
        ends = [0.0, max((max(one.plain, one.filtered) for one in own), default=1.0)]
        panel.plot(ends, ends, color="gray", linewidth=0.8)
        share = figures["nearness"][embedding]["folds"]["all"]["share_nearer"]
        panel.set_title(f"{says}\nnearer to the filtered mean: {_cell(share, 2)}", loc="left", fontsize=8)
        panel.set_xlabel("1 - cosine to the mean of all")
        panel.set_ylabel("1 - cosine to the filtered mean")
        panel.legend(fontsize=7)
    for embedding in EMBEDDINGS:
        ours = [one for one in figures["strangers"] if one["filter"] == "ours"]
        shares = [one["share"] for one in ours]
        near = [one[embedding]["nearer_by"] for one in ours]
        means = [one["mean"] for one in near]
        reach = [[one["mean"] - one["low"] for one in near], [one["high"] - one["mean"] for one in near]]
        panels[2].errorbar(shares, means, reach, marker="o", linewidth=0.8, capsize=2, label=embedding)
    panels[2].axhline(0, color="gray", linewidth=0.8)
    panels[2].set_title("by how much the filtered mean is nearer", loc="left", fontsize=8)
    panels[2].set_xlabel("strangers among the candidates")
    panels[2].legend(fontsize=7)
    settings = list(people[0]["stories"])
    for person in people:
        agreed = [person["stories"][setting]["judge"]["among"] for setting in settings]
        panels[3].plot(settings, [float("nan") if one is None else one for one in agreed], marker="o", linewidth=0.8)
    panels[3].set_title("the judge: faces among the frames of a story, by person", loc="left", fontsize=8)
    panels[3].set_ylabel("mean cosine over pairs of frames")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
