"""`storyloom models add`: packages of what others publish, that then make a story."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from diffusers import StableDiffusionXLPipeline
from safetensors.torch import load_file, save_file
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection
from typer.testing import CliRunner

from storyloom_model.adding.__main__ import app
from storyloom_model.adding.bases import base_of
from storyloom_model.adding.record import sha256
from storyloom_model.denoiser import Denoiser
from storyloom_model.identity.published.layers import attention_layers
from storyloom_model.jobs import Identity
from storyloom_model.package import ModelPackage, PackageError, write_manifest
from tests.model.published_files import (
    EMBEDDING,
    STATES,
    UNETS,
    adapter_shapes,
    identity,
    nested,
    published_unet,
    random_weights,
    storymaker_shapes,
)
from tests.model.published_models import SECOND_WIDTH, TEXT_WIDTH, write_folder, write_single_file
from tests.model.tiny import finish, tiny_job

WEIGHTS = {
    "unet": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
}


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model's folder, and single files of the same weights beside it."""
    folder = tmp_path_factory.mktemp("published")
    modules = write_folder(folder / "base")
    for suffix in (".safetensors", ".ckpt"):
        write_single_file(folder / f"single{suffix}", modules)
    return folder


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A package made of a folder in the form of SDXL, and the modules that the folder was made of."""
    folder = tmp_path_factory.mktemp("sdxl")
    modules = write_folder(folder / "base", sdxl=True)
    file = adapter_file(folder, "storymaker", "mask.safetensors", TEXT_WIDTH + SECOND_WIDTH)
    added("add", folder / "base", "--to", folder / "package", "--adapter", file)
    manifest = ModelPackage.load(folder / "package").manifest
    write_manifest(folder / "package", manifest.model_copy(update={"sizes": (*manifest.sizes, (96, 64))}))
    return folder / "package", modules


@torch.inference_mode()
def test_sdxl_makes_what_diffusers_makes(sdxl: tuple[Path, dict[str, Any]]) -> None:
    """A story of one frame against diffusers' pipeline: both text encoders, pooled text, sizes, guidance."""
    package, modules = sdxl
    pipelines: Any = StableDiffusionXLPipeline
    pipeline = pipelines(**modules, add_watermarker=False)
    job = tiny_job(1, steps=2, adapter=None, width=96)
    state = Denoiser.load(package).encode(job)
    expected = pipeline(
        job.frames[0].prompt.text,
        negative_prompt=job.negative_prompt,
        width=96,
        height=64,
        num_inference_steps=2,
        guidance_scale=job.guidance_scale,
        latents=state.latents.clone(),
        output_type="latent",
    ).images
    found = finish(Denoiser.load(package), job).latents
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_sdxl_stories_share_calls_and_take_storymaker(sdxl: tuple[Path, dict[str, Any]]) -> None:
    denoiser = Denoiser.load(sdxl[0], one_call=True)
    assert denoiser.manifest.description == "SDXL"
    jobs = [
        tiny_job(2, seed, steps=2, adapter=None, identities=(Identity("mia", identity(seed).to_bytes()),),
                 identity_adapter="mask")
        for seed in (1, 2)
    ]  # fmt: skip
    states = [denoiser.encode(job) for job in jobs]
    while not states[0].done:
        denoiser.step(states)
    for job, state in zip(jobs, states, strict=True):
        torch.testing.assert_close(state.latents, finish(denoiser, job).latents, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(states[0].latents, story(denoiser))


@pytest.fixture
def base(published: Path, tmp_path: Path) -> Path:
    """A copy of the folder, to be broken."""
    for file in (published / "base").rglob("*.*"):
        copy = tmp_path / "base" / file.relative_to(published / "base")
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(file.read_bytes())
    return tmp_path / "base"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)))


def added(*arguments: object) -> str:
    """What a command that must succeed says."""
    done = run(*arguments)
    assert done.exit_code == 0, done.output
    return done.stdout


def refused(*arguments: object) -> str:
    """What a command that must fail says, in one line."""
    done = run(*arguments)
    assert done.exit_code == 1, done.output
    return " ".join(done.stderr.split())


def same_weights(one: Path, other: Path) -> bool:
    pairs = [(load_file(one / part / name), load_file(other / part / name)) for part, name in WEIGHTS.items()]
    return all(a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a) for a, b in pairs)


def story(package: Path | Denoiser, **settings: Any) -> torch.Tensor:
    """The latents of a story that the package makes."""
    denoiser = package if isinstance(package, Denoiser) else Denoiser.load(package)
    return finish(denoiser, tiny_job(2, steps=2, adapter=None, **settings)).latents


def test_a_folder_becomes_a_package_that_makes_a_story(published: Path, tmp_path: Path) -> None:
    said = added("add", published / "base", "--to", tmp_path / "models" / "my base")
    package = ModelPackage.load(tmp_path / "models" / "my base")
    assert package.manifest.name == "my-base"
    assert same_weights(published / "base", package.folder)
    for part, name in WEIGHTS.items():
        assert sha256(published / "base" / part / name) in said
    assert torch.isfinite(story(package.folder)).all()
    assert [file.name for file in (tmp_path / "models").iterdir()] == ["my base"]


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_a_single_file_becomes_the_same_package(published: Path, tmp_path: Path, suffix: str) -> None:
    pickled = ["--allow-pickle"] if suffix == ".ckpt" else []
    file = published / f"single{suffix}"
    said = added("add", file, "--config", published / "base", "--to", tmp_path / "single", *pickled)
    assert sha256(file) in said
    assert same_weights(published / "base", tmp_path / "single")
    assert (tmp_path / "single/scheduler/scheduler_config.json").read_text() == (
        published / "base/scheduler/scheduler_config.json"
    ).read_text()
    added("add", published / "base", "--to", tmp_path / "folder")
    assert torch.equal(story(tmp_path / "single"), story(tmp_path / "folder"))


def test_older_names_and_halves_of_files_are_understood(base: Path, published: Path, tmp_path: Path) -> None:
    """Pickled weights, a half precision variant alone, and the names that attention of the VAE once had."""
    unet, vae = base / "unet" / WEIGHTS["unet"], base / "vae" / WEIGHTS["vae"]
    weights = load_file(unet)
    torch.save(weights, unet.with_suffix(".bin"))
    unet.unlink()
    old = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    renamed = load_file(vae)
    for new, name in old.items():
        renamed = {key.replace(new, name): value for key, value in renamed.items()}
    vae.unlink()
    save_file(renamed, vae.with_name("diffusion_pytorch_model.fp16.safetensors"))
    assert "is a pickle" in refused("add", base, "--to", tmp_path / "package")
    said = added("add", base, "--to", tmp_path / "package", "--allow-pickle")
    assert "converted" in said
    added("add", published / "base", "--to", tmp_path / "plain")
    assert torch.equal(story(tmp_path / "package"), story(tmp_path / "plain"))


def drop_part(base: Path) -> None:
    (base / "vae" / "config.json").unlink()


def drop_weights(base: Path) -> None:
    (base / "unet" / WEIGHTS["unet"]).unlink()


def cut_weights(base: Path) -> None:
    file = base / "unet" / WEIGHTS["unet"]
    file.write_bytes(file.read_bytes()[:-100])


def drop_one_weight(base: Path) -> None:
    file = base / "text_encoder" / WEIGHTS["text_encoder"]
    weights = load_file(file)
    del weights[next(key for key in weights if key.endswith("final_layer_norm.bias"))]
    save_file(weights, file)


def change(**values: Any) -> Callable[[Path], None]:
    def apply(base: Path) -> None:
        file = base / "unet" / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | values))

    return apply


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (drop_part, "is no complete diffusers folder; it lacks vae/config.json"),
        (drop_weights, "unet has no weights; it needs diffusion_pytorch_model.safetensors"),
        (cut_weights, "diffusion_pytorch_model.safetensors is cut off or damaged"),
        (drop_one_weight, "text_encoder lacks weights that its configuration asks for: final_layer_norm.bias"),
        (change(cross_attention_dim=64), "weights do not fit the configuration, such as"),
    ],
)
def test_what_is_wrong_with_a_folder_is_said(
    base: Path, tmp_path: Path, break_it: Callable[[Path], None], message: str
) -> None:
    break_it(base)
    assert message in refused("add", base, "--to", tmp_path / "package")
    assert [file.name for file in tmp_path.iterdir()] == ["base"]


def test_what_is_wrong_with_a_single_file_is_said(published: Path, tmp_path: Path) -> None:
    config = ["--config", published / "base", "--to", tmp_path / "package"]
    assert "is a pickle" in refused("add", published / "single.ckpt", *config)
    weights = load_file(published / "single.safetensors")
    save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors")
    assert "is no whole model" in refused("add", tmp_path / "a.safetensors", *config)
    text = {key: value for key, value in weights.items() if not key.startswith("cond_stage_model")}
    save_file(text, tmp_path / "b.safetensors")
    assert "does not fit the configuration" in refused("add", tmp_path / "b.safetensors", *config)
    narrow = {key: value for key, value in weights.items() if "output_blocks.3" not in key}
    save_file(narrow, tmp_path / "c.safetensors")
    assert re.search(
        "does not fit the configuration|lacks weights", refused("add", tmp_path / "c.safetensors", *config)
    )
    sdxl = "conditioner.embedders.0.transformer.text_model.embeddings.position_embedding.weight"
    save_file({sdxl: torch.zeros(1)}, tmp_path / "d.safetensors")
    assert "in the form of SDXL, whose single files are not read yet" in refused(
        "add", tmp_path / "d.safetensors", *config
    )


def test_sources_and_targets(published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    to = ["--to", tmp_path / "package"]
    assert "does not exist; give a diffusers folder" in refused("add", tmp_path / "none", *to)
    # No network: as where the hub is out of reach.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    said = refused("add", "somebody/some-model", *to)
    assert "cannot be fetched from the hub" in said
    assert "hf download somebody/some-model" in said
    assert "--local-dir FOLDER and give FOLDER in its place" in said
    assert "hf download stable-diffusion-v1-5" in refused("add", published / "single.safetensors", *to)
    (tmp_path / "package").mkdir()
    assert "exists; give a new folder" in refused("add", published / "base", *to)
    assert "need both encoders" in refused("add", published / "base", "--to", tmp_path / "b", "--faces", tmp_path)


def test_checksums_are_held_against_the_files(published: Path, tmp_path: Path) -> None:
    good = sha256(published / "single.safetensors")
    assert good == hashlib.sha256((published / "single.safetensors").read_bytes()).hexdigest()
    add = ["add", published / "single.safetensors", "--config", published / "base", "--to", tmp_path / "package"]
    said = refused(*add, "--sha256", f"single.safetensors={'0' * 64}")
    assert f"has the SHA-256 {good}, expected was 000" in said
    assert "no such file was taken" in refused(*add, "--sha256", f"other.safetensors={good}")
    assert run(*add, "--sha256", "single.safetensors=123").exit_code == 2
    added(*add, "--sha256", f"single.safetensors={good.upper()}")


def test_bases_have_settings_of_their_own() -> None:
    sdxl = base_of(UNETS["SDXL"])
    assert (sdxl.title, sdxl.sizes[0], sdxl.steps, sdxl.solver) == ("SDXL", (1024, 1024), 25, "unipc")
    sd15 = base_of(UNETS["SD 1.5"])
    assert (sd15.title, sd15.sizes[0], sd15.steps, sd15.guidance_scale) == ("SD 1.5", (512, 512), 30, 7.0)
    for changes, message in (
        ({"addition_embed_type": "image"}, "takes more than a text"),
        ({"in_channels": 9}, "takes 9 channels, as models for inpainting"),
        ({"class_embed_type": "timestep"}, "takes more than a text"),
    ):
        with pytest.raises(PackageError, match=message):
            base_of({**UNETS["SD 1.5"], **changes})


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A pack of faces, of which only the names are looked at, and a tiny image encoder of transformers."""
    folder = tmp_path_factory.mktemp("encoders")
    pack = folder / "antelopev2"
    pack.mkdir()
    for name in ("scrfd_10g_bnkps.onnx", "glintr100.onnx"):
        (pack / name).write_bytes(name.encode())
    config = CLIPVisionConfig(
        hidden_size=STATES, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, projection_dim=EMBEDDING,
        image_size=28, patch_size=14,
    )  # fmt: skip
    torch.manual_seed(2)
    CLIPVisionModelWithProjection(config).save_pretrained(folder / "image")
    (folder / "image" / "preprocessor_config.json").write_text("{}")
    return pack, folder / "image"


def adapter_file(folder: Path, form: str, name: str, width: int = TEXT_WIDTH) -> Path:
    layers = attention_layers(published_unet(width))
    shapes = storymaker_shapes(layers) if form == "storymaker" else adapter_shapes(form, layers)
    file = folder / name
    weights = random_weights(shapes)
    if file.suffix == ".bin":
        torch.save(nested(weights), file)
    else:
        save_file(weights, file)
    return file


ADAPTERS = {
    "ip-adapter-plus-face_sd15.safetensors": ("ip-adapter-plus", "ip-adapter-plus-face", ("face",)),
    "ip-adapter-faceid-plusv2_sd15.bin": ("ip-adapter-faceid-plus", "ip-adapter-faceid-plusv2", ("face",)),
    "mask.bin": ("storymaker", "storymaker", ("face", "hair", "clothes", "body")),
    "ip-adapter.bin": ("instantid", "instantid", ("face",)),
}


def test_adapters_are_served_with_the_package(published: Path, encoders: tuple[Path, Path], tmp_path: Path) -> None:
    """Each published form, through the command, the manifest and the engine, to other pictures by other faces."""
    files = [adapter_file(tmp_path, form, name) for name, (form, _, _) in ADAPTERS.items()]
    faces, image = encoders
    options = [option for file in files for option in ("--adapter", file)]
    said = added(
        "add", published / "base", "--to", tmp_path / "package", *options, "--faces", faces, "--image-encoder", image,
        "--allow-pickle",
    )  # fmt: skip
    assert "glintr100.onnx" in said
    manifest = ModelPackage.load(tmp_path / "package").manifest
    found = {one.file: (one.method, one.keeps) for one in manifest.identity_adapters.values()}
    assert found == {f"identity/{Path(name).stem}.safetensors": expected[1:] for name, expected in ADAPTERS.items()}
    assert manifest.defaults.identity_adapter == "ip-adapter-plus-face_sd15"
    assert (tmp_path / "package" / "faces" / "models" / "antelopev2" / "glintr100.onnx").is_file()
    assert len(load_file(tmp_path / "package/identity/ip-adapter-faceid-plusv2_sd15.safetensors")["empty_states"]) == 5

    denoiser = Denoiser.load(tmp_path / "package")
    plain = story(denoiser)
    for name in manifest.identity_adapters:
        one, other = (
            story(denoiser, identities=(Identity("mia", identity(seed).to_bytes()),), identity_adapter=name)
            for seed in (1, 2)
        )
        assert torch.isfinite(one).all()
        assert not torch.allclose(one, other)
        assert not torch.allclose(one, plain)


def test_an_adapter_is_added_to_a_package_that_exists(published: Path, tmp_path: Path) -> None:
    package = tmp_path / "package"
    added("add", published / "base", "--to", package)
    file = adapter_file(tmp_path, "ip-adapter-plus", "unnamed.safetensors")
    said = added("add-adapter", package, file, "--name", "mine", "--method", "ip-adapter-plus-face")
    assert "zeros for the negative prompt" in said
    assert ModelPackage.load(package).manifest.identity_adapters["mine"].method == "ip-adapter-plus-face"
    assert "has an adapter called mine already" in refused("add-adapter", package, file, "--name", "mine")
    assert "unknown method what" in refused("add-adapter", package, file, "--method", "what")
    wrong = tmp_path / "wrong.safetensors"
    save_file(random_weights(adapter_shapes("ip-adapter", attention_layers(published_unet(64)))), wrong)
    assert "is for a model of another kind (64)" in refused("add-adapter", package, wrong)
    assert set(ModelPackage.load(package).manifest.identity_adapters) == {"mine"}


def test_a_full_adapter_makes_room_for_its_tokens(published: Path, tmp_path: Path) -> None:
    file = adapter_file(tmp_path, "ip-adapter-full", "ip-adapter-full-face_sd15.safetensors")
    added("add", published / "base", "--to", tmp_path / "package", "--adapter", file)
    assert ModelPackage.load(tmp_path / "package").manifest.limits.max_identity_tokens == 3 * 257


def test_a_lora_is_served_with_its_weight(published: Path, tmp_path: Path) -> None:
    package, file = tmp_path / "package", tmp_path / "Some Style.safetensors"
    name = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
    key, text = f"lora_unet_{name.replace('.', '_')}", "lora_te_text_model_encoder_layers_0_mlp_fc1"
    weights = {f"{key}.lora_down.weight": torch.randn(2, TEXT_WIDTH), f"{key}.lora_up.weight": torch.randn(32, 2)}
    weights |= {f"{text}.lora_down.weight": torch.randn(2, 32), f"{text}.lora_up.weight": torch.randn(64, 2)}
    weights |= {f"{one}.alpha": torch.tensor(1.0) for one in (key, text)}
    save_file(weights, file)
    said = added("add", published / "base", "--to", package, "--adapter", file)
    assert "1 changes of the text encoder left out" in said
    assert ModelPackage.load(package).manifest.loras == {"some-style": "loras/some-style.safetensors"}
    kept = load_file(package / "loras" / "some-style.safetensors")
    expected = 0.5 * weights[f"{key}.lora_up.weight"] @ weights[f"{key}.lora_down.weight"]
    torch.testing.assert_close(kept[f"{name}.weight.up"] @ kept[f"{name}.weight.down"], expected)
    denoiser = Denoiser.load(package)
    assert not torch.allclose(story(denoiser, loras=(("some-style", 1.0),)), story(denoiser))


def test_encoders_say_what_they_lack(published: Path, encoders: tuple[Path, Path], tmp_path: Path) -> None:
    faces, image = encoders
    add = ["add", published / "base", "--to", tmp_path / "package"]
    assert "has no .onnx files" in refused(*add, "--faces", image, "--image-encoder", image)
    assert "it lacks config.json" in refused(*add, "--faces", faces, "--image-encoder", faces)


def test_pickled_tensors_may_share_memory(base: Path, tmp_path: Path) -> None:
    file = base / "text_encoder" / WEIGHTS["text_encoder"]
    weights = load_file(file)
    layer = next(key for key in weights if key.endswith("final_layer_norm.weight"))
    bias = layer.replace("weight", "bias")
    weights[layer] = weights[bias] = torch.ones(TEXT_WIDTH)
    file.unlink()
    torch.save(weights, file.with_name("pytorch_model.bin"))
    added("add", base, "--to", tmp_path / "package", "--allow-pickle")
    assert torch.equal(load_file(tmp_path / "package" / "text_encoder" / WEIGHTS["text_encoder"])[bias], torch.ones(32))
