"""The wire contract keeps its style and its promises to clients in the field."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from scripts import check_proto


@pytest.fixture
def proto_copy(tmp_path: Path) -> Path:
    copy = tmp_path / "proto"
    shutil.copytree(check_proto.PROTO_ROOT, copy)
    return copy


def _edit(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text, f"{old!r} is no longer in {path.name}; update this test"
    path.write_text(text.replace(old, new), encoding="utf-8")


def test_the_contract_is_sound() -> None:
    assert check_proto.check() == []


def test_removing_a_field_is_a_breaking_change(proto_copy: Path) -> None:
    _edit(proto_copy / "storyloom/v1/story_service.proto", "  uint64 seed = 3;\n", "")
    findings = check_proto.check(proto_copy)
    assert any('"seed"' in finding and '"FrameResult" was deleted' in finding for finding in findings), findings


def test_changing_a_type_is_a_breaking_change(proto_copy: Path) -> None:
    _edit(proto_copy / "storyloom/v1/story.proto", "optional uint32 steps = 2;", "optional uint64 steps = 2;")
    findings = check_proto.check(proto_copy)
    assert len(findings) == 1
    assert "uint32" in findings[0]
    assert "uint64" in findings[0]


def test_adding_a_field_is_allowed(proto_copy: Path) -> None:
    _edit(proto_copy / "storyloom/v1/story_service.proto", "uint64 seed = 3;", "uint64 seed = 3;\n  string note = 9;")
    assert check_proto.check(proto_copy) == []


def test_style_is_checked(proto_copy: Path) -> None:
    _edit(
        proto_copy / "storyloom/v1/story_service.proto", "uint64 seed = 3;", "uint64 seed = 3;\n  string badName = 9;"
    )
    assert any("lower_snake_case" in finding for finding in check_proto.check(proto_copy))


def test_updating_the_baseline_accepts_a_break_made_on_purpose(proto_copy: Path) -> None:
    _edit(proto_copy / "storyloom/v1/story_service.proto", "  uint64 seed = 3;\n", "")
    baseline = proto_copy / "baseline.binpb"
    assert check_proto.check(proto_copy, baseline)
    check_proto.update_baseline(proto_copy, baseline)
    assert check_proto.check(proto_copy, baseline) == []


def test_a_missing_baseline_says_how_to_make_it(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="--update-baseline"):
        check_proto.check(baseline=tmp_path / "none.binpb")
