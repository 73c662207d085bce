"""What the pages in docs/ list is what the code has, and their links lead somewhere."""

import ast
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from prometheus_client import Counter
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.parser import text_string_to_metric_families

from storyloom_server import options
from storyloom_server.metrics import Metrics

ROOT = Path(__file__).parents[2]
SERVER = ROOT / "server" / "storyloom_server"
PAGES = [
    *(
        ROOT / name
        for name in (
            "README.md",
            "CONTRIBUTING.md",
            "export/README.md",
            "kernels/README.md",
            "weights/storyloom-mini/README.md",
        )
    ),
    *sorted((ROOT / "docs").rglob("*.md")),
]
_REASON = re.compile(r"[A-Z][A-Z_]{6,}")
# Functions whose arguments in capitals are no reasons.
_OTHER_CALLS = ("_option", "ForeignKey", "ForeignKeyConstraint", "get", "removeprefix")


def section(page: str, heading: str) -> str:
    """What stands under a heading, up to the next one of its level or above."""
    text = (ROOT / "docs" / page).read_text()
    level = heading.split(" ")[0]
    start = text.index(f"\n{heading}\n") + len(heading) + 2
    following = re.search(rf"^#{{1,{len(level)}}} ", text[start:], re.MULTILINE)
    return text[start : start + following.start()] if following else text[start:]


def rows(text: str) -> list[list[str]]:
    """Cells of a table's rows, without its head."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def shown_default(field: Any) -> str:
    shown = field.json_schema_extra["shown"]
    match field.default:
        case _ if shown:
            return str(shown)
        case None:
            return "none"
        case bool():
            return "on" if field.default else "off"
        case list():
            return " ".join(map(str, field.default))
        case _:
            return str(field.default)


@pytest.mark.parametrize("group", options.GROUPS, ids=lambda group: group.__name__)
def test_every_option_is_described_with_its_default(group: Any) -> None:
    described = [(flag, default) for flag, default, _ in rows(section("server.md", f"### {group.__doc__}"))]
    assert described == [
        (f"`--{name.replace('_', '-')}`", shown_default(field)) for name, field in group.model_fields.items()
    ]


def test_every_metric_is_described_with_its_labels() -> None:
    table = rows(section("server.md", "## Metrics"))
    described = {name.strip("`"): set(re.findall(r"\w+", labels)) for name, labels, _ in table}
    metrics = Metrics("1", ["mini"])
    families = {
        f"{family.name}_total" if family.type == "counter" else family.name
        for family in text_string_to_metric_families(metrics.exposition().decode())
    }
    assert described.keys() == {name for name in families if not name.startswith("storyloom_process_")}
    for made in vars(metrics).values():
        if isinstance(made, MetricWrapperBase):
            name = f"{made._name}_total" if isinstance(made, Counter) else made._name
            assert described[name] == set(made._labelnames), name


def reasons_in_code() -> Iterator[str]:
    """Reasons are what calls in the server are given in capitals, and the constants of errors.py."""
    for file in SERVER.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            match node:
                case ast.Assign(value=value) if file.name == "errors.py":
                    yield from filter(_REASON.fullmatch, texts([value]))
                case ast.Call(func=called, args=arguments, keywords=named):
                    name = ast.unparse(called).split(".")[-1]
                    if name in ("not_found", "NotFoundError"):
                        yield from (f"{kind.upper()}_NOT_FOUND" for kind in texts(arguments[:1]))
                    elif name not in _OTHER_CALLS:
                        given = texts([*arguments, *(each.value for each in named)])
                        yield from filter(_REASON.fullmatch, given)


def texts(expressions: Iterable[ast.expr]) -> list[str]:
    """Those that are string constants."""
    return [each.value for each in expressions if isinstance(each, ast.Constant) and isinstance(each.value, str)]


def test_every_reason_of_an_error_is_described() -> None:
    described = rows(section("protocol.md", "## Errors"))
    assert {reason.strip("`") for reason, *_ in described} == set(reasons_in_code())
    assert {status for _, status, *_ in described} <= {code.name for code in grpc.StatusCode}
    for reason, status, retry, *_ in described:
        always = status == "UNAVAILABLE"
        assert retry == "yes" if always else retry in ("yes", "no"), reason


def anchors(page: Path) -> set[str]:
    """The names that GitHub gives to a page's headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        target, _, anchor = link.partition("#")
        if re.match(r"https?:", target):
            continue
        found = (page.parent / target).resolve() if target else page
        assert found.exists(), link
        assert not anchor or anchor in anchors(found), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_that_are_named_exist(page: Path) -> None:
    for name in re.findall(r"`([\w./-]+/[\w./-]+\.(?:py|md|json|toml|proto|binpb))`", page.read_text()):
        assert any((root / name).exists() for root in (ROOT, SERVER, page.parent)), name


def test_every_decision_is_listed() -> None:
    listed = (ROOT / "docs" / "architecture.md").read_text()
    pages = [page.name for page in (ROOT / "docs" / "decisions").glob("*.md")]
    assert pages
    for page in pages:
        assert f"(decisions/{page})" in listed
