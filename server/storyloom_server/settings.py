"""Checks the generation settings of a request and fills in the model's defaults."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from storyloom.v1 import story_pb2 as pb
from storyloom_model.jobs import FreeU
from storyloom_model.manifest import NO_ADAPTER
from storyloom_model.methods.rounds import ROUNDS, Rounds
from storyloom_server.catalog import SOLVERS, ServedModel
from storyloom_server.freeu import freeu_to_wire, resolve_freeu, resolve_injection
from storyloom_server.redenoising import ResolvedRedenoising, resolve_redenoising
from storyloom_server.rounds import adapter_of_rounds, check_alone, resolve_rounds, rounds_to_wire, why_no_rounds
from storyloom_server.violations import Findings

_PATH = "story.settings"
_MIN_GUIDANCE, _MAX_GUIDANCE = 1.0, 30.0
_MAX_LORAS, _MAX_LORA_WEIGHT = 8, 2.0


@dataclass(frozen=True, slots=True)
class ResolvedSettings:
    """Settings without gaps. ``adapter`` is "none" for the package's weights as they are, ``identity_adapter`` where
    references are left aside. ``loras`` are names with their weights. ``method`` is the story method; ``rounds`` are
    those of a method that makes a story in several.
    """

    steps: int
    guidance_scale: float
    solver: str
    width: int
    height: int
    seed: int
    cross_frame: bool
    adapter: str
    preview_interval: int
    identity_adapter: str
    loras: tuple[tuple[str, float], ...]
    method: str
    redenoising: ResolvedRedenoising | None
    rounds: Rounds | None
    feature_injection: bool
    freeu: FreeU | None

    def to_wire(self, model: str) -> pb.Settings:
        """The form in which a client gets them back."""
        return pb.Settings(
            model=model,
            steps=self.steps,
            guidance_scale=self.guidance_scale,
            solver=SOLVERS[self.solver],
            width=self.width,
            height=self.height,
            seed=self.seed,
            consistency=pb.Consistency(
                enabled=self.cross_frame,
                adapter=self.adapter,
                method=self.method,
                rounds=None if self.rounds is None else rounds_to_wire(self.rounds),
                feature_injection=self.feature_injection or None,
            ),
            preview_interval=self.preview_interval,
            identity_adapter=self.identity_adapter,
            loras=[pb.LoraWeight(name=name, weight=weight) for name, weight in self.loras],
            redenoising=None if self.redenoising is None else self.redenoising.to_wire(),
            freeu=None if self.freeu is None else freeu_to_wire(self.freeu),
        )


def resolve_settings(
    found: Findings, asked: pb.Settings, model: ServedModel, choose_seed: Callable[[], int]
) -> ResolvedSettings:
    """Fills in defaults and notes every bad value in ``found``; the result counts only when nothing was found."""
    width, height = _size(found, asked, model)
    steps = _steps(found, asked, model)
    method = _method(found, asked, model)
    cross_frame = asked.consistency.enabled if asked.consistency.HasField("enabled") else True
    rounds = resolve_rounds(found, asked, method) if cross_frame else None
    redenoising = resolve_redenoising(found, asked, width, height)
    if rounds is not None and redenoising is not None:
        check_alone(found)
    return ResolvedSettings(
        steps=steps,
        guidance_scale=_guidance(found, asked, model),
        solver=_solver(found, asked, model),
        width=width,
        height=height,
        seed=asked.seed if asked.HasField("seed") else choose_seed(),
        cross_frame=cross_frame,
        adapter=_adapter(found, asked, model),
        preview_interval=_preview_interval(found, asked, steps),
        identity_adapter=(
            _identity_adapter(found, asked, model)
            if rounds is None
            else adapter_of_rounds(found, asked.identity_adapter, model)
        ),
        loras=_loras(found, asked, model),
        method=method,
        redenoising=redenoising,
        rounds=rounds,
        feature_injection=resolve_injection(found, asked, method),
        freeu=resolve_freeu(found, asked, model.manifest),
    )


def _steps(found: Findings, asked: pb.Settings, model: ServedModel) -> int:
    steps = asked.steps if asked.HasField("steps") else model.manifest.defaults.steps
    if not 1 <= steps <= model.manifest.limits.max_steps:
        found.add(f"{_PATH}.steps", f"{steps} steps; ask for 1 to {model.manifest.limits.max_steps}")
    return steps


def _guidance(found: Findings, asked: pb.Settings, model: ServedModel) -> float:
    scale = asked.guidance_scale if asked.HasField("guidance_scale") else model.manifest.defaults.guidance_scale
    if not (math.isfinite(scale) and _MIN_GUIDANCE <= scale <= _MAX_GUIDANCE):
        found.add(
            f"{_PATH}.guidance_scale",
            f"{scale:g} is not a guidance scale; use {_MIN_GUIDANCE:g} (off) to {_MAX_GUIDANCE:g}",
        )
    return scale


def _solver(found: Findings, asked: pb.Settings, model: ServedModel) -> str:
    if asked.solver == pb.SOLVER_UNSPECIFIED:
        return model.manifest.defaults.solver
    for name, number in SOLVERS.items():
        if number == asked.solver:
            return name
    known = ", ".join(pb.Solver.Name(number) for number in SOLVERS.values())
    found.add(f"{_PATH}.solver", f"solver number {int(asked.solver)} is unknown; use one of {known}")
    return model.manifest.defaults.solver


def _size(found: Findings, asked: pb.Settings, model: ServedModel) -> tuple[int, int]:
    width, height = model.size_of(asked)
    if (width, height) not in model.manifest.sizes:
        path = f"{_PATH}.width" if asked.HasField("width") else f"{_PATH}.height"
        allowed = ", ".join(f"{w}x{h}" for w, h in model.manifest.sizes)
        found.add(path, f"{model.name} does not make {width}x{height} pictures; use one of {allowed}")
    return width, height


def _adapter(found: Findings, asked: pb.Settings, model: ServedModel) -> str:
    adapter = asked.consistency.adapter or model.default_adapter
    if adapter not in model.adapters:
        found.add(
            f"{_PATH}.consistency.adapter",
            f"{model.name} has no such adapter; use one of {', '.join(model.adapters)} "
            f"({NO_ADAPTER} leaves the weights as they are)",
        )
    return adapter


def _identity_adapter(found: Findings, asked: pb.Settings, model: ServedModel) -> str:
    adapter = asked.identity_adapter or model.default_identity_adapter
    known = (*model.identity_adapters, NO_ADAPTER)
    if adapter not in known:
        found.add(
            f"{_PATH}.identity_adapter", f"{model.name} has no such identity adapter; use one of {', '.join(known)}"
        )
        return NO_ADAPTER
    return adapter


def _loras(found: Findings, asked: pb.Settings, model: ServedModel) -> tuple[tuple[str, float], ...]:
    if len(asked.loras) > _MAX_LORAS:
        found.add(f"{_PATH}.loras", f"{len(asked.loras)} LoRA; name at most {_MAX_LORAS}")
        return ()
    known = model.manifest.loras
    weights: dict[str, float] = {}
    for index, each in enumerate(asked.loras):
        path = f"{_PATH}.loras[{index}]"
        weight = each.weight if each.HasField("weight") else 1.0
        if each.name not in known:
            use = f"use one of {', '.join(known)}" if known else "it has none: leave them out"
            found.add(f"{path}.name", f"{model.name} has no such LoRA; {use}")
        elif each.name in weights:
            found.add(f"{path}.name", f"{each.name} is named before; name it once, with the sum of the weights")
        if not (math.isfinite(weight) and abs(weight) <= _MAX_LORA_WEIGHT):
            found.add(f"{path}.weight", f"{weight:g} is no weight; use {-_MAX_LORA_WEIGHT:g} to {_MAX_LORA_WEIGHT:g}")
        weights[each.name] = weight
    return tuple(weights.items())


def _method(found: Findings, asked: pb.Settings, model: ServedModel) -> str:
    method = asked.consistency.method or model.default_method
    if method == ROUNDS and method not in model.methods:
        found.add(f"{_PATH}.consistency.method", why_no_rounds(model))
    elif method not in model.methods:
        found.add(
            f"{_PATH}.consistency.method", f"there is no such story method; use one of {', '.join(model.methods)}"
        )
    return method


def _preview_interval(found: Findings, asked: pb.Settings, steps: int) -> int:
    if asked.preview_interval > steps:
        found.add(
            f"{_PATH}.preview_interval",
            f"a preview every {asked.preview_interval} steps never comes in {steps} steps; use 0 (none) to {steps}",
        )
    return asked.preview_interval
