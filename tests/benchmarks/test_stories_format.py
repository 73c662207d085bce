"""Stories in the form of ConsiStory-Human become stories that say the same, and bad files are told of completely."""

import io
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from benchmarks.identity.cases import identity_case
from benchmarks.stories.consistory import BenchmarkFileError, find_references, read_benchmark
from benchmarks.stories.held_out import held_out_stories
from benchmarks.stories.stories import BenchmarkStory
from storyloom_model.prompts import ComposedPrompt, compose

DATA = Path(__file__).with_name("data") / "stories"


def written(folder: Path, **content: object) -> Path:
    file = folder / "story.json"
    file.write_text(json.dumps(content))
    return file


def composed(story: BenchmarkStory) -> list[ComposedPrompt]:
    """The prompts as the server puts them together."""
    cast = {name: character.description for name, character in story.story.characters.items()}
    prompts = [compose(story.story.style, frame.prompt, cast, frame.characters) for frame in story.story.frames]
    return [prompt for prompt in prompts if isinstance(prompt, ComposedPrompt)]


def places(prompt: ComposedPrompt) -> dict[str, list[str]]:
    return {name: [prompt.text[start:end] for start, end in spans] for name, spans in prompt.spans.items()}


def test_the_model_is_given_the_prompts_as_the_benchmark_has_them() -> None:
    stories = read_benchmark(DATA)
    assert [story.name for story in stories] == ["single", "two-pair"]
    for story, file in zip(stories, (DATA / "single.json", DATA / "two" / "pair.json"), strict=True):
        content = json.loads(file.read_text())
        assert [prompt.text for prompt in composed(story)] == content["prompts"]
        assert story.story.style == content["style"]


def test_each_character_has_its_place_in_every_prompt() -> None:
    single, pair = read_benchmark(DATA)
    assert single.casts == (("woman",),) * 3
    assert pair.people == 2
    for prompt in composed(pair):
        assert places(prompt) == {
            "man": ["elderly man with short, white hair"],
            "girl": ["young girl with black braids"],
        }


def test_a_token_is_spelt_out_and_a_prompt_may_leave_some_out(tmp_path: Path) -> None:
    file = written(
        tmp_path,
        prompts=["A boy runs", "A boy and a girl sit; the girl smiles", "an empty street"],
        character=["young boy with curly hair", "young girl with braids"],
        token=["boy", "girl"],
        style="A photo of",
    )
    (story,) = read_benchmark(file)
    texts = [prompt.text for prompt in composed(story)]
    assert texts[0] == "A young boy with curly hair runs"
    assert texts[1] == "A young boy with curly hair and a young girl with braids sit; the girl smiles"
    assert story.casts == (("boy",), ("boy", "girl"), ("boy", "girl"))
    assert story.story.style == ""  # The prompts do not begin with it.


def test_characters_with_one_token_and_descriptions_within_each_other_are_told_apart(tmp_path: Path) -> None:
    file = written(
        tmp_path,
        prompts=["young man with a beard, young man with a beard and glasses, on a bench"],
        character=["young man with a beard", "young man with a beard and glasses"],
        token=["man", "man"],
    )
    (story,) = read_benchmark(file)
    assert places(composed(story)[0]) == {
        "man": ["young man with a beard"],
        "man-2": ["young man with a beard and glasses"],
    }


def test_an_article_is_not_doubled(tmp_path: Path) -> None:
    file = written(tmp_path, prompts=["Photo of a woman in the rain"], character="an old woman", token=["woman"])
    (story,) = read_benchmark(file)
    assert composed(story)[0].text == "Photo of an old woman in the rain"


@given(st.text(alphabet="ab {}.,\n", min_size=1).filter(str.strip), st.text(alphabet="ab {}.,\n"))
def test_whatever_else_a_prompt_says_is_kept(tmp_path_factory: pytest.TempPathFactory, before: str, after: str) -> None:
    prompt = f"{before} red fox {after}".strip()
    file = written(tmp_path_factory.mktemp("story"), prompts=[prompt], character="red fox", token=["fox"])
    (story,) = read_benchmark(file)
    assert composed(story)[0].text == prompt


def test_every_fault_of_every_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{")
    (tmp_path / "b.json").write_text(json.dumps({"prompts": [], "character": "a", "token": ["b"]}))
    (tmp_path / "c.json").write_text(json.dumps({"prompts": ["x"], "character": ["a", "b"], "token": "c"}))
    with pytest.raises(BenchmarkFileError) as caught:
        read_benchmark(tmp_path)
    lines = str(caught.value).splitlines()
    assert len(lines) == 3
    assert "a.json: is not JSON" in lines[0]
    assert "b.json: prompts" in lines[1]
    assert "2 descriptions in character and 1 words in token" in lines[2]
    (tmp_path / "empty").mkdir()
    with pytest.raises(BenchmarkFileError, match=r"holds no \.json files"):
        read_benchmark(tmp_path / "empty")
    with pytest.raises(BenchmarkFileError, match="cannot be read"):
        read_benchmark(tmp_path / "gone.json")


def test_references_are_found_by_story_and_character(tmp_path: Path) -> None:
    stories = read_benchmark(DATA)
    with pytest.raises(BenchmarkFileError, match=r"single/woman\.png"):
        find_references(tmp_path, stories)
    file = tmp_path / "two-pair" / "girl.png"
    file.parent.mkdir()
    picture = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(picture, "PNG")
    file.write_bytes(picture.getvalue())
    single, pair = find_references(tmp_path, stories)
    assert not single.references
    assert pair.asked(references=True).characters["girl"].references[0].picture == picture.getvalue()
    assert not pair.asked(references=True).characters["man"].references
    assert pair.asked(references=False) == pair.story


@pytest.mark.parametrize("described", [True, False])
def test_held_out_stories_say_what_the_identity_benchmark_says(described: bool) -> None:
    (story,) = held_out_stories(1, 2, 3, described=described)
    case = identity_case(0, 2, 3)
    wanted = case.described if described else case.generic
    assert [(prompt.text, dict(prompt.spans)) for prompt in composed(story)] == [
        (prompt.text, dict(prompt.spans)) for prompt in wanted
    ]
    assert set(story.references) == set(case.names)
