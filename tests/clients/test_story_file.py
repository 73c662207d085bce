"""Story files: what they may say, and what a writer is told when they say something else."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from storyloom import Character, Consistency, Frame, FreeU, Redenoising, Rounds, Settings, Solver, Story, StoryFileError
from storyloom._story_file import load_story_file
from storyloom._wire import story_from, story_message
from storyloom._yaml import parse

_EXAMPLES = sorted((Path(__file__).resolve().parents[2] / "examples").glob("*.yaml"))


def _write(folder: Path, text: str) -> Path:
    path = folder / "story.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def _problems(folder: Path, text: str) -> list[str]:
    path = _write(folder, text)
    with pytest.raises(StoryFileError) as caught:
        Story.load(path)
    return str(caught.value).replace(f"{path}:", "").splitlines()


def test_everything_a_file_can_say_is_read(tmp_path: Path) -> None:
    path = _write(
        tmp_path,
        """
title: A day in the park
style: an illustration of
characters:
  mia: a young woman
  tom: {description: an elderly man}
  ann: {id: character-7}
  bob: {id: character-8, description: in a red hat}
frames:
  - "{mia} is walking"
  - prompt: waving at a lake
    characters: [mia, tom]
    seed: 7
settings: {model: storyloom-mini, steps: 25, guidance_scale: 5, solver: ddim, width: 128, height: 96, seed: 1,
  preview_interval: 5, consistency: {enabled: true, adapter: amsa-mask, method: consistory},
  loras: {ink: 0.8, wash: -1}}
negative_prompt: blurry
""",
    )
    assert Story.load(path) == Story(
        title="A day in the park",
        style="an illustration of",
        characters={
            "mia": Character(description="a young woman"),
            "tom": Character(description="an elderly man"),
            "ann": Character(id="character-7"),
            "bob": Character(id="character-8", description="in a red hat"),
        },
        frames=(
            Frame(prompt="{mia} is walking"),
            Frame(prompt="waving at a lake", characters=("mia", "tom"), seed=7),
        ),
        settings=Settings(
            model="storyloom-mini",
            steps=25,
            guidance_scale=5,
            solver=Solver.DDIM,
            width=128,
            height=96,
            seed=1,
            preview_interval=5,
            consistency=Consistency(enabled=True, adapter="amsa-mask", method="consistory"),
            loras={"ink": 0.8, "wash": -1},
        ),
        negative_prompt="blurry",
    )


@pytest.mark.parametrize("path", _EXAMPLES, ids=lambda path: path.stem)
def test_examples_are_stories_of_six_frames(path: Path) -> None:
    story = Story.load(path)
    assert len(story.frames) == 6
    assert story.title
    assert all(caption.isprintable() and "{" not in caption for caption in story.captions)


def test_there_are_examples_with_one_and_with_two_characters() -> None:
    assert {len(Story.load(path).characters) for path in _EXAMPLES} >= {1, 2}


def test_all_problems_are_told_at_once_in_the_order_of_the_file(tmp_path: Path) -> None:
    assert _problems(
        tmp_path,
        """title: A day
characters:
  mia: a young woman
  tom: {desc: an elderly man, description: x}
frames:
  - "{mia} is walking"
  - promt: hi
    prompt: hi
  - prompt: waving
    seed: -1
settings:
  steps: 2.5
  solver: dimm
  guidance_scale: .nan
  consistency: {enbled: true}
  width: yes
stile: x
""",
    ) == [
        '4:9: characters.tom.desc: unknown key "desc"; did you mean "description"?',
        '7:5: frames[1].promt: unknown key "promt"; did you mean "prompt"?',
        "10:5: frames[2].seed: should be greater than or equal to 0",
        "12:3: settings.steps: should be a whole number",
        "13:3: settings.solver: should be 'ddim', 'euler' or 'unipc'",
        "14:3: settings.guidance_scale: should be a finite number",
        '15:17: settings.consistency.enbled: unknown key "enbled"; did you mean "enabled"?',
        "16:3: settings.width: should be a whole number",
        '17:1: stile: unknown key "stile"; did you mean "title"?',
    ]


def test_unknown_characters_are_told_with_the_closest_name(tmp_path: Path) -> None:
    assert _problems(
        tmp_path,
        """characters: {mia: a woman, tom: a man}
frames:
  - "{mai} is walking and {zzz} is not"
  - prompt: "{tom} is waving {"
    characters:
      - mia
      - tim
""",
    ) == [
        '3:5: frames[0].prompt: no character is named "mai"; did you mean "mia"?',
        '3:5: frames[0].prompt: no character is named "zzz"; known: mia, tom',
        "4:5: frames[1].prompt: a { must be followed by a character's name and }; write {{ for a brace",
        '7:9: frames[1].characters[1]: no character is named "tim"; did you mean "tom"?',
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ["the file is empty"]),
        ("# nothing\n", ["the file is empty"]),
        ("- a\n", ["1:1: should be a mapping, `name: value` on each line"]),
        ("title: x\n", ['1:1: frames: the key "frames" is missing']),
        ("frames: []\n", ["1:1: frames: needs at least one frame"]),
        ("frames: ['  ']\n", ["1:10: frames[0].prompt: must not be empty"]),
        ("frames:\n\t- a\n", ["2:1: a tab stands here; indent with spaces"]),
        (
            "frames:\n  - {mia} is walking\n",
            ['2:11: a text that starts with { must be in quotes, like "{mia} is walking"'],
        ),
        ("frames:\n  - {mia}\n", ['2:5: frames[0]: put the prompt in quotes, like "{mia} is walking"']),
        ("frames: [a]\ntitle: a: b\n", ["2:9: a text with a colon and a space in it must be in quotes"]),
        ("title: a\nframes: [a]\ntitle: b\n", ['3:1: "title" is written twice; the first is in line 1']),
        ("frames: [a]\ntitle: 12\n", ["2:1: title: should be text; put it in quotes"]),
        ("frames: [a]\n\x07", ["2:1: the character U+0007 is not allowed"]),
        ("frames: &a [*a]\n", ["1:9: frames[0]: should be a mapping, `name: value` on each line"]),
        (
            "frames: [a]\ncharacters: {1x: y}\n",
            [
                "2:14: characters.1x: a character's name must start with a letter and hold only letters, digits, "
                "_ and -, at most 32 of them"
            ],
        ),
        ("frames: [a]\ntitle: " + "x" * 201, ["2:1: title: should have at most 200 characters"]),
        (
            "frames: [a]\ncharacters: {mia: {}}\n",
            ["2:14: characters.mia: needs a description, or the id of a character that the server keeps"],
        ),
        ("frames: [a]\ncharacters: {mia: {id: ''}}\n", ["2:20: characters.mia.id: must not be empty"]),
        ("frames: [a]\nsettings: {seed: true}\n", ["2:12: settings.seed: should be a whole number"]),
        (
            "frames: [a]\nsettings: {guidance_scale: 31}\n",
            ["2:12: settings.guidance_scale: should be less than or equal to 30"],
        ),
    ],
)
def test_each_fault_has_its_line_and_says_what_to_do(tmp_path: Path, text: str, expected: list[str]) -> None:
    assert [problem.strip() for problem in _problems(tmp_path, text)] == expected


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(StoryFileError, match=r"none\.yaml: cannot be read: No such file"):
        Story.load(tmp_path / "none.yaml")
    (tmp_path / "latin.yaml").write_bytes("title: caf\xe9".encode("latin-1"))
    with pytest.raises(StoryFileError, match="is not UTF-8 text"):
        Story.load(tmp_path / "latin.yaml")


def test_words_and_dates_stay_text(tmp_path: Path) -> None:
    story = Story.load(_write(tmp_path, "title: 2026-01-01\ncharacters: {no: a man, on: a woman}\nframes: ['{no}']\n"))
    assert story.title == "2026-01-01"
    assert list(story.characters) == ["no", "on"]


def test_merge_keys_and_aliases_work(tmp_path: Path) -> None:
    text = "frames:\n  - &a {prompt: x, seed: 1}\n  - {<<: *a, seed: 2}\n  - *a\n"
    assert [frame.seed for frame in Story.load(_write(tmp_path, text)).frames] == [1, 2, 1]


def test_fields_of_the_server_are_found_in_the_file(tmp_path: Path) -> None:
    file = load_story_file(
        _write(
            tmp_path,
            """characters:
  mia: a woman
  tom:
    description: a man
frames:
  - short
  - prompt: long
    characters: [tom]
settings:
  steps: 3
  loras:
    ink: 0.5
    wash: 1
""",
        )
    )
    assert file.locate("story.frames[1].prompt") == (7, 5)
    assert file.locate("story.frames[0].prompt") == (6, 5)
    assert file.locate("story.frames[1].characters[0]") == (8, 18)
    assert file.locate("story.characters[0].description") == (2, 3)
    assert file.locate("story.characters[1].description") == (4, 5)
    assert file.locate("story.settings.steps") == (10, 3)
    assert file.locate("story.settings.loras[1].name") == (13, 5)
    assert file.locate("story.settings.width") is None
    assert file.locate("story.frames[9].prompt") is None


def test_captions_read_as_people_write() -> None:
    story = Story.model_validate({"characters": {"mia": "a woman"}, "frames": ["{mia} says {{hi}}", "a lake"]})
    assert story.captions == ("mia says {hi}", "a lake")


def test_settings_are_replaced_one_by_one() -> None:
    story = Story.model_validate(
        {"frames": ["a"], "settings": {"steps": 10, "consistency": {"adapter": "amsa"}, "seed": 3}}
    )
    changed = story.with_settings(steps=5, consistency={"enabled": False})
    assert changed.settings == Settings(steps=5, seed=3, consistency=Consistency(enabled=False, adapter="amsa"))
    assert story.settings.steps == 10
    with pytest.raises(ValidationError):
        story.with_settings(steps=0)


def test_a_second_pass_is_switched_on_or_described(tmp_path: Path) -> None:
    for text, expected in (
        ("true", Redenoising(enabled=True)),
        ("{start: 0.3, mask_growth: 20, retries: 2}", Redenoising(start=0.3, mask_growth=20, retries=2)),
    ):
        path = _write(tmp_path, f"frames: [a]\nsettings:\n  redenoising: {text}\n")
        assert Story.load(path).settings.redenoising == expected
    problems = _problems(tmp_path, "frames: [a]\nsettings:\n  redenoising: {begin: 1, start: 1.0}\n")
    assert any('unknown key "begin"' in problem for problem in problems)
    assert any("settings.redenoising.start" in problem for problem in problems)


def test_a_character_may_have_a_region_prompt(tmp_path: Path) -> None:
    text = """\
characters:
  mia: {description: a girl, id: char-1, region_prompt: "{mia}, smiling"}
frames: [a]
"""
    path = _write(tmp_path, text)
    story = load_story_file(path)
    assert story_message(story.story).characters[0].identity.region_prompt == "{mia}, smiling"
    assert story_from(story_message(story.story)).characters["mia"].region_prompt == "{mia}, smiling"
    assert story.locate("story.characters[0].identity.region_prompt") == (2, 42)
    (problem,) = _problems(tmp_path, text.replace("id: char-1, ", ""))
    assert "region_prompt, and no references for them" in problem


def test_rounds_may_be_a_number(tmp_path: Path) -> None:
    for text, expected in (("5", Rounds(count=5)), ("{first_scale: 0.2}", Rounds(first_scale=0.2))):
        path = _write(tmp_path, f"frames: [a]\nsettings:\n  consistency: {{method: story-adapter, rounds: {text}}}\n")
        story = Story.load(path)
        assert story.settings.consistency.rounds == expected
        changed = story.with_settings(consistency={"rounds": {"count": 7}}).settings.consistency
        assert changed.rounds is not None
        assert (changed.method, changed.rounds.count) == ("story-adapter", 7)
        assert changed.rounds.first_scale == expected.first_scale
    problems = _problems(tmp_path, "frames: [a]\nsettings:\n  consistency:\n    rounds: {count: 0, scale: 1.0}\n")
    assert any('unknown key "scale"' in problem for problem in problems)
    assert any("settings.consistency.rounds.count" in problem for problem in problems)


def test_freeu_is_switched_on_or_described_and_changed_number_by_number(tmp_path: Path) -> None:
    path = _write(tmp_path, "frames: [a]\nsettings:\n  freeu: {b1: 1.3}\n  consistency: {feature_injection: true}\n")
    story = Story.load(path)
    assert story.settings.freeu == FreeU(b1=1.3)
    assert story.settings.consistency.feature_injection
    assert story.with_settings(freeu={"enabled": True}).settings.freeu == FreeU(enabled=True, b1=1.3)
    assert story.with_settings(freeu=False).settings.freeu == FreeU(enabled=False)
    switched = Story.load(_write(tmp_path, "frames: [a]\nsettings:\n  freeu: true\n"))
    assert switched.settings.freeu == FreeU(enabled=True)
    problems = _problems(tmp_path, "frames: [a]\nsettings:\n  freeu: {b3: 1, s1: 4.5}\n")
    assert any('unknown key "b3"' in problem for problem in problems)
    assert any("settings.freeu.s1" in problem for problem in problems)


_names = st.from_regex(r"[A-Za-z][A-Za-z0-9_-]{0,31}", fullmatch=True)
# PyYAML itself does not read every control character back; the server refuses them in any case.
_letters = st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"])
_texts = st.text(_letters, min_size=1).filter(str.strip)


@given(data=st.data(), title=st.text(_letters, max_size=200), cast=st.dictionaries(_names, _texts, max_size=4))
def test_any_story_survives_being_written_as_yaml(data: st.DataObject, title: str, cast: dict[str, str]) -> None:
    literal = _texts.map(lambda text: text.replace("{", "{{").replace("}", "}}"))
    mention = st.sampled_from(sorted(cast)).map(lambda name: f"{{{name}}}") if cast else st.nothing()
    prompts = data.draw(st.lists(literal | mention, min_size=1, max_size=4))
    story = Story.model_validate({"title": title, "characters": cast, "frames": prompts})
    # In quotes: YAML 1.1, which PyYAML writes, and 1.2 differ on which plain words are numbers, such as 0E0.
    text = yaml.safe_dump(story.model_dump(mode="json", exclude_unset=True), allow_unicode=True, default_style='"')
    assert Story.model_validate(parse(text).value) == story
    names = [name for name in cast for prompt in prompts if f"{{{name}}}" == prompt]
    assert all(any(name in caption for caption in story.captions) for name in names)
