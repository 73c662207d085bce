"""UNets by the weights that stories ask for: as loaded, with an adapter, and with low-rank changes fused in."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from storyloom_model.adapters import with_adapter
from storyloom_model.identity.adapter import LowRank
from storyloom_model.low_rank import Changes, check_low_rank, fuse


@dataclass(frozen=True, slots=True)
class Variant:
    """Whatever decides the weights of a UNet. Stories that agree in it can share a call.

    ``adapter`` None: the base weights. ``identity`` is an identity adapter that changes weights; one that only adds
    streams is not in it. ``loras`` are sorted by name, without those of weight 0.
    """

    adapter: str | None = None
    identity: str | None = None
    loras: tuple[tuple[str, float], ...] = ()

    @property
    def fused(self) -> bool:
        """Whether there is anything to fuse."""
        return bool(self.identity or self.loras)


class Variants:
    """The UNets of a model. Those with changes fused in are made when asked for, and some are kept.

    A variant shares all tensors that it does not change. The one unused for longest goes when there are too many; a
    story that still needs it has it made again, bitwise the same.

    Args:
        unets: base weights (None) and adapters; they stay.
        identity: low-rank changes of identity adapters by name.
        loras: those of LoRA by name.
        limit: the most fused variants that are kept.
        forget: is told of each that goes.
        replace: makes of a UNet, some weights and a name a second UNet with these weights.

    Raises:
        PackageError: changes are not for these UNets.
    """

    def __init__(
        self,
        unets: Mapping[str | None, Any],
        identity: Mapping[str, Changes],
        loras: Mapping[str, Mapping[str, LowRank]],
        limit: int,
        forget: Callable[[Variant], None],
        replace: Callable[[Any, Mapping[str, Tensor], str], Any] = with_adapter,
    ) -> None:
        for kind, named in (("identity adapter", identity), ("LoRA", loras)):
            for name, changes in named.items():
                check_low_rank(changes, unets[None], f"{kind} {name}")
        self._unets = unets
        self._identity = identity
        self._loras = loras
        self._limit = limit
        self._forget = forget
        self._replace = replace
        self._fused: OrderedDict[Variant, Any] = OrderedDict()

    def __len__(self) -> int:
        """Fused variants at hand."""
        return len(self._fused)

    def unet(self, variant: Variant) -> Any:
        """The UNet of a variant, which is made if need be."""
        if not variant.fused:
            return self._unets[variant.adapter]
        if variant not in self._fused:
            # Makes room first: the new one may need the memory of the old.
            while len(self._fused) >= self._limit:
                self._drop(next(iter(self._fused)))
            self._fused[variant] = self._fuse(variant)
        self._fused.move_to_end(variant)
        return self._fused[variant]

    def clear(self) -> None:
        """Drops every fused variant and its memory; they are made again when needed."""
        for variant in list(self._fused):
            self._drop(variant)

    def _fuse(self, variant: Variant) -> Any:
        unet = self._unets[variant.adapter]
        changes = [(self._identity[variant.identity], 1.0)] if variant.identity else []
        changes += [(self._loras[name], weight) for name, weight in variant.loras]
        return self._replace(unet, fuse(unet, changes), str(variant))

    def _drop(self, variant: Variant) -> None:
        del self._fused[variant]
        self._forget(variant)
