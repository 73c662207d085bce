"""What a user is told about a bad story, with the real tokenizer of a real package."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storyloom.v1 import story_pb2 as pb
from storyloom_model.noise import frame_seed
from storyloom_server.catalog import CatalogError, ModelCatalog
from storyloom_server.validate import StoryPlan, plan_story
from storyloom_server.warm_up import warm_up_job
from tests.server.planning import planned, violations


@pytest.fixture(scope="module")
def catalog(tiny_package: Path) -> ModelCatalog:
    return ModelCatalog.load([tiny_package])


def good_story() -> pb.Story:
    return pb.Story(
        title="Two in the park",
        characters=[
            pb.Character(name="mia", description="a young girl with red hair"),
            pb.Character(name="tom", description="an old man"),
        ],
        frames=[
            pb.Frame(prompt="{mia} walks in the park"),
            pb.Frame(prompt="{mia} sits with {tom}"),
            pb.Frame(prompt="a dog", characters=["tom"], seed=99),
        ],
        settings=pb.Settings(seed=7),
    )


def test_frames_on_their_own_have_no_anchors(catalog: ModelCatalog) -> None:
    asked = good_story()
    assert planned(asked, catalog).window_anchors == catalog.models[0].manifest.limits.window_anchors
    asked.settings.consistency.enabled = False
    assert planned(asked, catalog).window_anchors == 0


def test_a_good_story_gets_every_default(catalog: ModelCatalog) -> None:
    plan = planned(good_story(), catalog)
    assert plan.settings == pb.Settings(
        model="tiny",
        steps=4,
        guidance_scale=4.0,
        solver=pb.SOLVER_DDIM,
        width=64,
        height=64,
        seed=7,
        consistency=pb.Consistency(enabled=True, adapter="amsa-mask", method="storynizor"),
        identity_adapter="none",
        preview_interval=0,
    )
    assert plan.frame_seeds == [frame_seed(7, 0), frame_seed(7, 1), 99]
    assert [frame.prompt.text for frame in plan.job.frames] == [
        "a young girl with red hair walks in the park",
        "a young girl with red hair sits with an old man",
        "an old man, a dog",
    ]
    assert plan.job.rows == 6


def test_what_is_asked_is_kept(catalog: ModelCatalog) -> None:
    story = good_story()
    asked = pb.Settings(
        model="tiny",
        steps=9,
        guidance_scale=1.0,
        solver=pb.SOLVER_UNIPC,
        width=96,
        height=64,
        seed=0,
        consistency=pb.Consistency(enabled=False, adapter="none", method="consistory"),
        identity_adapter="none",
        preview_interval=3,
    )
    story.settings.CopyFrom(asked)
    plan = planned(story, catalog)
    assert plan.settings == asked
    assert (plan.job.solver, plan.job.cross_frame, plan.job.adapter) == ("unipc", False, "none")
    assert plan.job.method == "consistory"
    assert plan.job.rows == 3
    assert plan.preview_interval == 3


def test_a_story_without_seed_gets_its_own(catalog: ModelCatalog) -> None:
    story = good_story()
    story.settings.ClearField("seed")
    first, second = planned(story, catalog), planned(story, catalog)
    assert first.settings.seed != second.settings.seed
    assert first.frame_seeds[0] == frame_seed(first.settings.seed, 0)


def test_every_violation_is_found_at_once(catalog: ModelCatalog) -> None:
    story = pb.Story(
        title="x" * 201,
        style="a\x00b",
        negative_prompt="n" * 2001,
        characters=[
            pb.Character(name="mia", description="a girl"),
            pb.Character(name="mia", description="a woman"),
            pb.Character(name="2nd", description=" "),
        ],
        frames=[
            pb.Frame(prompt=""),
            pb.Frame(prompt="{bob} walks"),
            pb.Frame(prompt="a dog", characters=["mia", "eve"]),
            pb.Frame(prompt="{mia} sits", characters=["mia"]),
            pb.Frame(prompt="an open { brace"),
        ],
        settings=pb.Settings(
            model="other",
            steps=0,
            guidance_scale=math.nan,
            solver=77,  # type: ignore[arg-type]
            width=65,
            consistency=pb.Consistency(adapter="nope", method="magic"),
            preview_interval=50,
        ),
    )
    found = violations(story, catalog)
    assert set(found) == {
        "story.title",
        "story.style",
        "story.negative_prompt",
        "story.characters[1].name",
        "story.characters[2].name",
        "story.characters[2].description",
        "story.frames[0].prompt",
        "story.frames[1].prompt",
        "story.frames[2].characters[1]",
        "story.frames[4].prompt",
        "story.settings.model",
        "story.settings.steps",
        "story.settings.guidance_scale",
        "story.settings.solver",
        "story.settings.width",
        "story.settings.consistency.adapter",
        "story.settings.consistency.method",
        "story.settings.preview_interval",
    }
    assert "use one of tiny" in found["story.settings.model"]
    assert "use one of 64x64, 96x64" in found["story.settings.width"]
    assert "amsa-mask, amsa, none" in found["story.settings.consistency.adapter"]
    assert "use one of storynizor, storydiffusion, consistory" in found["story.settings.consistency.method"]
    assert "{bob}" in found["story.frames[1].prompt"]
    assert "it has mia" in found["story.frames[1].prompt"]


def test_bad_loras_are_told(catalog: ModelCatalog) -> None:
    story = good_story()
    weights = [("ink", 0.5), ("gone", 1.0), ("ink", 0.2), ("wash", 2.5), ("line", math.nan), ("late", -2.0)]
    story.settings.loras.extend(pb.LoraWeight(name=name, weight=weight) for name, weight in weights)
    found = violations(story, catalog)
    assert "tiny has no such LoRA; it has none: leave them out" in found["story.settings.loras[0].name"]
    model = catalog.default
    loras = {name: f"{name}.safetensors" for name in ("ink", "wash", "line", "late")}
    found = violations(
        story, ModelCatalog([replace(model, manifest=model.manifest.model_copy(update={"loras": loras}))])
    )
    assert found.keys() == {
        f"story.settings.loras[{place}" for place in ("1].name", "2].name", "3].weight", "4].weight")
    }
    assert "use one of ink, wash, line, late" in found["story.settings.loras[1].name"]
    assert "named before" in found["story.settings.loras[2].name"]
    assert "2.5 is no weight; use -2 to 2" in found["story.settings.loras[3].weight"]
    del story.settings.loras[1:]
    story.settings.loras.extend([story.settings.loras[0]] * 8)
    assert violations(story, catalog) == {"story.settings.loras": "9 LoRA; name at most 8"}


def test_an_empty_story_is_refused(catalog: ModelCatalog) -> None:
    assert "at least one frame" in violations(pb.Story(), catalog)["story.frames"]


def test_frames_without_characters_are_fine(catalog: ModelCatalog) -> None:
    assert planned(pb.Story(frames=[pb.Frame(prompt="a dog")]), catalog).job.frames[0].prompt.spans == {}


def test_too_many_frames_and_characters_are_counted(catalog: ModelCatalog) -> None:
    story = good_story()
    story.frames.extend([pb.Frame(prompt="a dog")] * 238)
    story.characters.extend(pb.Character(name=f"c{n}", description="a cat") for n in range(2))
    found = violations(story, catalog)
    assert found == {
        "story.frames": "241 frames; tiny takes 240 at most",
        "story.characters": "4 characters; the model takes 3 at most",
    }


def test_an_over_long_prompt_says_what_would_be_cut(catalog: ModelCatalog) -> None:
    story = good_story()
    story.frames[0].prompt = "{mia} walks in the park " + "in the park " * 25
    message = violations(story, catalog)["story.frames[0].prompt"]
    assert "reads 77 tokens" in message
    quoted = message.split('"')[1]
    text = story.frames[0].prompt.format(mia="a young girl with red hair")
    assert quoted.removesuffix("…") in text
    assert quoted.split()[0] in ("in", "the", "park"), "no word is cut in two"


def test_an_over_long_negative_prompt_is_refused(catalog: ModelCatalog) -> None:
    story = good_story()
    story.negative_prompt = "the dog " * 60
    assert "would leave out" in violations(story, catalog)["story.negative_prompt"]


@pytest.mark.parametrize("scale", [math.nan, math.inf, -math.inf, 0.0, 0.99, 30.5])
def test_guidance_outside_its_range_is_refused(catalog: ModelCatalog, scale: float) -> None:
    story = good_story()
    story.settings.guidance_scale = scale
    assert list(violations(story, catalog)) == ["story.settings.guidance_scale"]


def test_descriptions_that_multiply_are_refused_without_being_tokenized(catalog: ModelCatalog) -> None:
    story = good_story()
    story.characters[0].description = "hair " * 390
    story.frames[0].prompt = "{mia}" * 300
    assert "characters with descriptions filled in" in violations(story, catalog)["story.frames[0].prompt"]


wild_text = st.text(max_size=40) | st.sampled_from(["{mia}", "{", "}}", "{mia} and {tom}", "a dog"])
wild_stories = st.builds(
    pb.Story,
    title=wild_text,
    style=wild_text,
    negative_prompt=wild_text,
    characters=st.lists(st.builds(pb.Character, name=wild_text | st.just("mia"), description=wild_text), max_size=5),
    frames=st.lists(st.builds(pb.Frame, prompt=wild_text, characters=st.lists(wild_text, max_size=4)), max_size=14),
    settings=st.builds(
        pb.Settings,
        steps=st.none() | st.integers(0, 2**32 - 1),
        guidance_scale=st.none() | st.floats(width=32),
        solver=st.integers(0, 9),
        width=st.none() | st.integers(0, 2**32 - 1),
        seed=st.none() | st.integers(0, 2**64 - 1),
        preview_interval=st.integers(0, 2**32 - 1),
    ),
)


@settings(max_examples=200, deadline=None)
@given(wild_stories)
def test_any_message_gives_a_plan_or_reasons(catalog: ModelCatalog, story: pb.Story) -> None:
    plan = plan_story(story, catalog)
    if isinstance(plan, StoryPlan):
        assert len(plan.job.frames) == len(story.frames) >= 1
        assert 1 <= plan.job.steps <= 100
        assert plan_story(story, catalog, lambda: plan.settings.seed) == plan
    else:
        assert plan
        assert all(violation.path.startswith("story") and violation.message for violation in plan)


def test_the_warm_up_story_is_a_good_one(catalog: ModelCatalog) -> None:
    job = warm_up_job(catalog.default)
    assert (len(job.frames), job.steps) == (2, 4)
    assert job.frames[0].prompt.spans


def test_two_packages_of_one_name_are_refused(tiny_package: Path) -> None:
    with pytest.raises(CatalogError, match="two model packages are named tiny"):
        ModelCatalog.load([tiny_package, tiny_package])


def test_a_folder_that_is_no_package_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match="give the folder of a model package"):
        ModelCatalog.load([tmp_path])
