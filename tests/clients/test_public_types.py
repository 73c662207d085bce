"""What the documentation shows passes a strict type checker."""

import ast
import inspect
import os
import subprocess
import sys
from pathlib import Path

from storyloom import Story

_ROOT = Path(__file__).resolve().parents[2]
_GOOD = """
from storyloom import Character, Frame, Settings, Story

prompts: list[str] = ["{mia} walks"]
Story(frames=prompts)
Story(frames=("a dog", Frame(prompt="a cat", seed=1)), settings=Settings(steps=5))
looks: dict[str, str] = {"mia": "a girl"}
story = Story(title="t", style="s", negative_prompt="n", characters=looks, frames=prompts)
Story(characters={"mia": Character(description="a girl"), "bo": "an old man"}, frames=prompts)
first: Frame = story.frames[0]
mia: Character = story.characters["mia"]
"""
_BAD = """
from storyloom import Story

Story(frames=[1])
Story(frames=["a dog"], sort="tragedy")
Story(title="no frames")
"""


def _mypy(source: str, folder: Path) -> list[str]:
    file = folder / "snippet.py"
    file.write_text(source)
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file", os.devnull, str(file)]
    environment = {**os.environ, "MYPYPATH": str(_ROOT / "clients" / "python")}
    done = subprocess.run(command, cwd=_ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stderr
    return [line for line in done.stdout.splitlines() if "snippet.py" in line and "error:" in line]


def test_strings_do_for_characters_and_frames(tmp_path: Path) -> None:
    assert _mypy(_GOOD, tmp_path) == []
    assert {int(line.split(":")[1]) for line in _mypy(_BAD, tmp_path)} == {4, 5, 6}


def test_the_checkers_view_of_a_story_has_every_field() -> None:
    tree = ast.parse(inspect.getsource(Story))
    (init,) = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == "__init__"]
    assert {argument.arg for argument in init.args.kwonlyargs} == Story.model_fields.keys()
