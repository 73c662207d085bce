"""Training stays PyTorch: a package that was trained on is exported anew and verified, with a command each."""

import shutil
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from typer.testing import CliRunner

from storyloom_export.artefact import Artefact, ArtefactError, default_folder
from storyloom_export.cli import app
from storyloom_kernels import GroupLayout
from storyloom_model.adapters import load_adapter
from storyloom_model.attention import StoryAttention, install_story_attention
from storyloom_model.components import load_components, save_package
from storyloom_model.package import ModelPackage
from storyloom_training.loop import Losses, Stage, run


def train_two_steps(package: ModelPackage, folder: Path) -> ModelPackage:
    """Trains the UNet with story attention on noise for two steps, and writes the package to ``folder``."""
    loaded = load_components(package)
    unet = loaded.unet.requires_grad_(True).train()
    install_story_attention(unet)

    def loss(stage: Stage) -> Losses:
        noisy, target = (torch.randn(2, 4, 8, 8, generator=stage.generator) for _ in range(2))
        text = torch.randn(2, 77, unet.config.cross_attention_dim, generator=stage.generator)
        token_mask = torch.zeros(2, 1, 77, dtype=torch.bool)
        token_mask[:, 0, 2:5] = True
        story = StoryAttention(GroupLayout((2,)), (8, 8), token_mask)
        times = torch.tensor([500, 500])
        kwargs = {"story": story}
        made = unet(noisy, times, encoder_hidden_states=text, cross_attention_kwargs=kwargs, return_dict=False)[0]
        return {"loss": F.mse_loss(made, target)}

    run(
        Stage(
            name="more", folder=folder / "run", model=unet, optimizer=torch.optim.AdamW(unet.parameters()), steps=2,
            warmup=0, learning_rate=1e-3, generator=torch.Generator().manual_seed(1),
        ),
        loss,
    )  # fmt: skip
    loaded.unet.eval().requires_grad_(False)
    adapters = {name: load_adapter(package.adapter_file(name)) for name in package.manifest.adapters}
    shutil.copytree(package.folder, folder / "package")  # What is not trained stays, its old export too.
    return save_package(folder / "package", package.manifest, loaded, adapters)


@pytest.mark.slow
def test_two_steps_of_training_then_export_and_verify(package: ModelPackage, tmp_path: Path) -> None:
    trained = train_two_steps(package, tmp_path)
    with pytest.raises(ArtefactError, match="exported from other weights") as refused:
        Artefact.load(default_folder(trained.folder), trained)
    command = str(refused.value).rpartition("storyloom-export ")[2].split()
    exported = CliRunner().invoke(app, command)
    assert exported.exit_code == 0, exported.output
    verified = CliRunner().invoke(app, ["verify", str(trained.folder), "--steps", "1"])
    assert verified.exit_code == 0, verified.output
