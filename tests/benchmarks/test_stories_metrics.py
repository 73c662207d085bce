"""The story metrics against plain formulas, on tiny random models in published form and the built-in face pack."""

import json
import sys
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPModel, Dinov2Config, Dinov2Model

from benchmarks.identity.cases import identity_case
from benchmarks.quality.attributes import truth
from benchmarks.quality.stories import BenchStory
from benchmarks.stories import q_align
from benchmarks.stories.built_in import text_agreement
from benchmarks.stories.clip import ClipMetrics, load_clip
from benchmarks.stories.dino import DinoMetric
from benchmarks.stories.faces import FaceMetrics, PackFaces, picture_of
from benchmarks.stories.held_out import held_out_stories
from benchmarks.stories.metric import WeightsError
from benchmarks.stories.plain import PlainMetrics
from benchmarks.stories.q_align_scores import QAlignMetric
from benchmarks.stories.similarity import faces_among, matched_cosine, mean
from benchmarks.stories.stories import BenchmarkStory, MadeStory
from benchmarks.stories.weights import Weights, load_metrics, read_weights_file
from benchmarks.stories.wording import framing, scene, stated
from storyloom import Character, Frame, Story
from storyloom_model.identity.encoders.faces import FaceEncoder
from storyloom_training.storydb.captions import describe_cast
from storyloom_training.storydb.picture import render
from tests.model.tiny import tiny_tokenizer

FACES = Path("weights/storyloom-mini/faces")
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
SIDE = 32


def made(pictures: int = 3) -> MadeStory:
    """Random pictures of a girl and, in the second, of a man too."""
    draw = np.random.default_rng(0)
    casts = tuple(("mia", "bo") if place == 1 else ("mia",) for place in range(pictures))
    story = Story(
        characters={"mia": Character(description="a girl with red hair"), "bo": Character(description="a man")},
        frames=tuple(Frame(prompt="walks", characters=cast) for cast in casts),
    )
    prompts = tuple(f"a girl walks in the {colour} hair" for colour in ("red", "blue", "coat")[:pictures])
    return MadeStory(
        BenchmarkStory("story", story, casts),
        prompts,
        tuple(draw.integers(0, 256, (SIDE, SIDE, 3), np.uint8) for _ in range(pictures)),
    )


def processor(kind: str) -> str:
    sizes = {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}}
    return json.dumps({"image_processor_type": kind, "image_mean": MEAN, "image_std": STD, "do_resize": True} | sizes)


def normalised(pictures: tuple[np.ndarray, ...]) -> torch.Tensor:
    scaled = (np.stack(pictures) / 255 - np.array(MEAN)) / np.array(STD)
    return torch.tensor(scaled.transpose(0, 3, 1, 2), dtype=torch.float32)


def pairs_mean(vectors: np.ndarray) -> float:
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return float(np.mean([a @ b for a, b in combinations(unit, 2)]))


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP folder as published, with random weights."""
    folder = tmp_path_factory.mktemp("clip")
    tokenizer = tiny_tokenizer()
    text = {
        "vocab_size": len(tokenizer), "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 2, "max_position_embeddings": 77, "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id,
    }  # fmt: skip
    vision = {
        "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "image_size": SIDE, "patch_size": 8,
    }  # fmt: skip
    torch.manual_seed(0)
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=12)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(processor("CLIPImageProcessor"))
    return folder


def test_clip_figures_are_the_cosines_that_clip_itself_gives(clip: Path) -> None:
    story = made()
    values = ClipMetrics(load_clip(clip)).measure(story)
    model, tokenizer = CLIPModel.from_pretrained(clip).eval(), tiny_tokenizer()
    for frame, picture in enumerate(story.pictures):
        texts = [story.prompts[frame], *story.asked.descriptions(frame)]
        rows = []
        for text in texts:  # One at a time: no padding has a part in it.
            tokens = tokenizer(text, return_tensors="pt")
            output = model(
                input_ids=tokens["input_ids"],
                attention_mask=tokens["attention_mask"],
                pixel_values=normalised((picture,)),
            )
            rows.append(F.cosine_similarity(output.image_embeds, output.text_embeds).item())
        assert values["clip_t"][frame] == pytest.approx(rows[0], abs=1e-5)
        assert values["clip_t_c"][frame] == pytest.approx(np.mean(rows[1:]), abs=1e-5)
    states = model.vision_model(pixel_values=normalised(story.pictures)).last_hidden_state[:, 0]
    embeds = model.visual_projection(model.vision_model.post_layernorm(states)).detach().numpy()
    assert mean(values["clip_i"]) == pytest.approx(pairs_mean(embeds), abs=1e-5)


def test_texts_longer_than_clip_reads_are_cut_off(clip: Path) -> None:
    towers = load_clip(clip)
    long, longer = towers.texts(["a girl " * 60, "a girl " * 90])
    np.testing.assert_allclose(long, longer, atol=1e-6)


def test_dino_figures_are_cosines_of_class_tokens(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = Dinov2Config(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=SIDE, patch_size=8)
    model = Dinov2Model(config).eval()
    model.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(processor("BitImageProcessor"))
    story = made()
    values = DinoMetric(tmp_path).measure(story)["dino_i"]
    tokens = model(pixel_values=normalised(story.pictures)).pooler_output.detach().numpy()
    assert mean(values) == pytest.approx(pairs_mean(tokens), abs=1e-5)


def test_a_story_of_one_picture_has_no_figure_across_pictures(clip: Path) -> None:
    values = ClipMetrics(load_clip(clip)).measure(made(1))
    assert values["clip_i"] == [None]
    assert values["clip_t"][0] is not None
    assert PlainMetrics().measure(made(1)) == {"background": [None]}


def unit(*values: float) -> np.ndarray:
    vector = np.array(values, np.float32)
    return vector / np.linalg.norm(vector)


def test_faces_of_several_people_are_matched_and_frames_without_are_left_out() -> None:
    a, b = unit(1, 0), unit(0, 1)
    faces = [np.stack([a, b]), np.stack([b, a]), np.stack([a]), np.zeros((0, 2), np.float32)]
    casts = [("mia", "bo"), ("mia", "bo"), ("mia",), ("bo",)]
    assert faces_among(faces, casts) == [pytest.approx(1), pytest.approx(1), pytest.approx(1), None]
    assert matched_cosine(np.stack([a]), np.stack([b]), 1) == pytest.approx(0)
    assert matched_cosine(np.stack([a]), np.stack([b]), 2) is None
    assert faces_among(faces[:1] * 2, [("mia",), ("bo",)]) == [None, None]


@given(st.integers(0, 2**32 - 1), st.integers(1, 3), st.integers(1, 3))
def test_the_best_match_does_not_depend_on_the_order_of_faces(seed: int, ours: int, theirs: int) -> None:
    draw = np.random.default_rng(seed)
    a, b = (draw.normal(size=(count, 4)).astype(np.float32) for count in (ours, theirs))
    pairs = min(ours, theirs)
    best = matched_cosine(a, b, pairs)
    assert best == pytest.approx(matched_cosine(b[::-1], a[::-1], pairs), abs=1e-5)
    assert best is not None
    assert best >= np.mean([a[i] @ b[i] for i in range(pairs)]) - 1e-5


def test_face_similarity_is_that_of_insightface() -> None:
    stories = held_out_stories(2, 1, 3, described=True)
    encoder = FaceEncoder.load(FACES)
    metric = FaceMetrics(PackFaces(encoder))
    for asked in stories:
        assert asked.group is not None
        pictures = tuple(np.asarray(render(asked.group, frame, 256).image) for frame in range(3))
        values = metric.measure(MadeStory(asked, ("",) * 3, pictures))
        found = [encoder.faces(picture) for picture in pictures]
        faces = [own[0].embedding for own in found if own]
        assert mean(values["face_sim"]) == pytest.approx(pairs_mean(np.stack(faces)), abs=1e-5)
        reference = encoder.faces(picture_of(asked.references[asked.casts[0][0]]))[0].embedding
        assert mean(values["face_sim_r"]) == pytest.approx(np.mean([face @ reference for face in faces]), abs=1e-5)
        assert mean(values["faces"]) == pytest.approx(len(faces) / 3)
    stranger = stories[0].with_references(stories[1].references)
    pictures = tuple(np.asarray(render(stories[0].group, frame, 256).image) for frame in range(3))  # type: ignore[arg-type]
    own, other = (
        mean(metric.measure(MadeStory(asked, ("",) * 3, pictures))["face_sim_r"]) for asked in (stories[0], stranger)
    )
    assert own is not None
    assert other is not None
    assert own > other + 0.3


def test_words_are_read_back_as_the_captions_were_written() -> None:
    for index in range(40):
        case = identity_case(index, 1, 4)
        told = describe_cast(case.group)[0]
        assert stated(told.text) == BenchStory(index, case.group, told, case.described).stated, told.text
        for record, prompt in zip(case.group.frames, case.described, strict=True):
            assert (scene(prompt.text), framing(prompt.text)) == (record.scene, record.framing), prompt.text


def test_words_of_other_benchmarks_are_read_as_far_as_they_are_known() -> None:
    said = stated("elderly East Asian woman with short, grey hair and light wrinkles")
    assert said == {
        "gender": {"female"}, "age": {"elderly"}, "hair style": {"short straight"}, "hair colour": {"gray"},
    }  # fmt: skip
    assert stated("young Hispanic boy with fair skin")["age"] == {"child"}
    assert stated("a wizard") == {}
    assert scene("A close-up photo of someone, reading books in a cozy library") == "library"
    assert scene("on the moon") is None


def test_text_agreement_counts_what_is_stated_and_seen() -> None:
    (story,) = held_out_stories(1, 1, 1, described=True)
    assert story.group is not None
    reading, told = truth(story.group, 0), story.descriptions(0)
    prompt = identity_case(0, 1, 1).described[0].text
    assert text_agreement(reading, prompt, told) == 1
    wrong = text_agreement(reading | {"scene": "nowhere"}, prompt, told)
    assert wrong is not None
    assert 0 < wrong < 1
    assert text_agreement(reading, "a wizard on the moon", ["a wizard"]) is None


def test_a_metric_without_weights_is_told_of(tmp_path: Path) -> None:
    metrics, left_out = load_metrics(Weights(), tmp_path, "cpu")
    assert [column.key for metric in metrics for column in metric.columns] == ["background"]
    lines = "\n".join(map(str, left_out))
    for heading in ("CLIP-T, CLIP-T-C, CLIP-I", "DINO-I", "Face-Sim", "Q-Align quality", "text agreement"):
        assert f"left out: {heading}" in lines
    for wanted in ("--clip", "--dino", "--faces", "benchmarks.stories.q_align", "--built-in"):
        assert wanted in lines


def test_weights_that_cannot_be_used_say_what_to_give(tmp_path: Path, clip: Path) -> None:
    with pytest.raises(WeightsError, match="neither config"):
        load_clip(tmp_path)
    with pytest.raises(WeightsError, match="not a DINO"):
        DinoMetric(clip)
    with pytest.raises(WeightsError, match="no face pack"):
        load_metrics(Weights(faces=tmp_path), tmp_path, "cpu")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(WeightsError, match="'bert', not clip"):
        load_clip(tmp_path)
    file = tmp_path / "weights.yaml"
    file.write_text("clip: models/clip\n")
    assert read_weights_file(file) == {"clip": tmp_path / "models" / "clip"}
    file.write_text("clop: models/clip\n")
    with pytest.raises(WeightsError, match="clip, dino, faces"):
        read_weights_file(file)


def test_an_open_clip_folder_without_its_library_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "open_clip_config.json").write_text("{}")
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(WeightsError, match=r"storyloom\[eval\]"):
        load_clip(tmp_path)


def test_an_open_clip_folder_gives_cosines_of_its_own_model(tmp_path: Path) -> None:
    open_clip = pytest.importorskip("open_clip", reason="open_clip is not installed: pip install 'storyloom[eval]'")
    tower = {"width": 16, "layers": 1, "heads": 2}
    config: dict[str, Any] = {
        "model_cfg": {
            "embed_dim": 12,
            "vision_cfg": {"image_size": SIDE, "patch_size": 8, "head_width": 8, "layers": 1, "width": 16},
            "text_cfg": {"context_length": 77, "vocab_size": 49408} | tower,
        },
        "preprocess_cfg": {"mean": MEAN, "std": STD},
    }
    torch.manual_seed(0)
    model = open_clip.model.CLIP(**config["model_cfg"]).eval()
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    torch.save(model.state_dict(), tmp_path / "open_clip_pytorch_model.bin")
    story = made()
    values = ClipMetrics(load_clip(tmp_path)).measure(story)
    pictures = model.encode_image(normalised(story.pictures))
    texts = model.encode_text(open_clip.tokenize(list(story.prompts)))
    wanted = F.cosine_similarity(pictures, texts).tolist()
    assert values["clip_t"] == pytest.approx(wanted, abs=1e-4)


ALIGN = """
import torch
from transformers import PretrainedConfig, PreTrainedModel
open({ran!r}, "w").close()
class TinyConfig(PretrainedConfig):
    model_type = "tiny_align"
class TinyAlign(PreTrainedModel):
    config_class = TinyConfig
    def __init__(self, config):
        super().__init__(config)
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.post_init()
    def forward(self):
        return self.weight
    def score(self, images, task_, input_):
        assert input_ == "image"
        return torch.tensor([image.width / 10 + (task_ == "aesthetics") for image in images])
"""


@pytest.fixture
def align(tmp_path: Path) -> Path:
    """A folder with code of its own, as One-Align's, which leaves a mark when it runs."""
    folder = tmp_path / "tiny-align"
    folder.mkdir()
    (folder / "modeling_tiny.py").write_text(ALIGN.replace("{ran!r}", repr(str(tmp_path / "ran"))))
    names = {"AutoConfig": "modeling_tiny.TinyConfig", "AutoModelForCausalLM": "modeling_tiny.TinyAlign"}
    (folder / "config.json").write_text(json.dumps({"model_type": "tiny_align", "auto_map": names}))
    save_file({"weight": torch.ones(1)}, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_q_align_runs_foreign_code_only_when_told_to(
    tmp_path: Path, align: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    out = tmp_path / "out"
    place = out / "none" / "story"
    place.mkdir(parents=True)
    (place / "benchmark.json").write_text("{}")
    for number, width in enumerate((20, 30), 1):
        Image.new("RGB", (width, 8), (number, 0, 0)).save(place / f"frame-0{number}.png")
    with pytest.raises(SystemExit, match="--allow-remote-code"):
        q_align.main([str(out), "--weights", str(align)])
    assert not (tmp_path / "ran").exists()
    assert QAlignMetric.of(out) is None
    q_align.main([str(out), "--weights", str(align), "--allow-remote-code"])
    assert (tmp_path / "ran").exists()
    assert "2 pictures scored" in capsys.readouterr().out
    story = made(2)
    files = tuple(sorted(place.glob("*.png")))
    metric = QAlignMetric.of(out)
    assert metric is not None
    values = metric.measure(MadeStory(story.asked, story.prompts, story.pictures, files))
    assert values["q_align_quality"] == pytest.approx([2.0, 3.0])
    assert values["q_align_aesthetics"] == pytest.approx([3.0, 4.0])
    Image.new("RGB", (40, 8)).save(files[0])  # Another picture has no score until it is scored.
    assert metric.measure(MadeStory(story.asked, story.prompts, story.pictures, files))["q_align_quality"][0] is None
    with pytest.raises(SystemExit, match=r"storyloom\[q-align\]"):
        q_align.main([str(out), "--weights", str(tmp_path / "nothing"), "--allow-remote-code"])
