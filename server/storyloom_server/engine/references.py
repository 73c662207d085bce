"""References that the engine encodes between its other work, one picture at a time: no step waits for more."""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from storyloom_model.identity.encoders.pictures import ReferenceProblem
from storyloom_model.identity.features import IdentityFeatures, ReferenceFeatures
from storyloom_server import messages
from storyloom_server.engine.backend import Backend, ReferenceEncoder, TakesReferences
from storyloom_server.logs import failure, fields

log = logging.getLogger("storyloom.engine")


@dataclass(slots=True)
class _Asked:
    """References of one character, as far as they are encoded. ``begun``: the service has been told."""

    ask: messages.EncodeReferences
    begun: bool = False
    features: list[ReferenceFeatures] = field(default_factory=list)
    notes: list[tuple[int, str]] = field(default_factory=list)
    problems: list[tuple[int, str]] = field(default_factory=list)
    encoded: int = 0
    seconds: float = 0.0


class ReferenceQueue:
    """First come, first served.

    Args:
        backends: the loaded models by name, as they are now.
        tell: sends a message to the service.
    """

    def __init__(self, backends: Mapping[str, Backend], tell: Callable[[messages.FromEngine], None]) -> None:
        self._backends = backends
        self._tell = tell
        self._asked: dict[str, _Asked] = {}

    @property
    def waiting(self) -> bool:
        """Whether there is anything to encode."""
        return bool(self._asked)

    def add(self, ask: messages.EncodeReferences) -> None:
        """Takes references in."""
        self._asked[ask.job_id] = _Asked(ask)

    def drop(self, job_id: str) -> None:
        """Nobody waits for these any more. An unknown id is no error."""
        if self._asked.pop(job_id, None) is not None:
            log.info("references dropped", extra=fields(job_id=job_id))

    def begin_next(self) -> bool:
        """Tells whose turn it is, once. False when there is nothing to encode."""
        first = next(iter(self._asked.values()), None)
        if first is not None and not first.begun:
            first.begun = True
            log.info("references are being encoded", extra=fields(job_id=first.ask.job_id))
            self._tell(messages.ReferencesBegun(first.ask.job_id))
        return first is not None

    def encode_next(self) -> None:
        """Encodes one picture; with the last of its character, answers."""
        first = next(iter(self._asked.values()))
        encoder = encoder_of(self._backends.get(first.ask.model))
        if encoder is None:
            self._answer(first, error=f"model {first.ask.model} takes no references here")
            return
        began = time.monotonic()
        try:
            self._encode_one(first, encoder)
        except Exception as error:  # noqa: BLE001 - whatever it is, it must not take stories with it.
            log.error("references cannot be encoded", extra=fields(job_id=first.ask.job_id, **failure(error)))
            self._answer(first, error=f"the encoders raised {type(error).__name__}")
            return
        first.seconds += time.monotonic() - began
        first.encoded += 1
        if first.encoded == len(first.ask.references):
            self._answer(first, encoders=encoder.fingerprint)

    def _encode_one(self, asked: _Asked, encoder: ReferenceEncoder) -> None:
        try:
            features, notes = encoder.encode_one(asked.ask.references[asked.encoded])
        except ReferenceProblem as error:
            asked.problems.append((asked.encoded, str(error)))
            return
        asked.features.append(features)
        asked.notes += [(asked.encoded, note) for note in notes]

    def _answer(self, asked: _Asked, *, encoders: str = "", error: str = "") -> None:
        del self._asked[asked.ask.job_id]
        whole = not error and not asked.problems
        features = IdentityFeatures(encoders, tuple(asked.features)).to_bytes() if whole else b""
        self._tell(
            messages.ReferencesEncoded(
                asked.ask.job_id,
                features=features,
                encoders=encoders,
                notes=tuple(asked.notes),
                problems=tuple(asked.problems),
                seconds=asked.seconds,
                error=error,
            )
        )


def fingerprint(backend: Backend | None) -> str:
    """What tells a model's encoders from others; "" for a model that takes no references."""
    encoder = encoder_of(backend)
    return "" if encoder is None else encoder.fingerprint


def fingerprints(backends: Mapping[str, Backend]) -> dict[str, str]:
    """The fingerprints of those models that take references."""
    return {name: found for name, backend in backends.items() if (found := fingerprint(backend))}


def encoder_of(backend: Backend | None) -> ReferenceEncoder | None:
    """What looks at references; None for a model that takes none."""
    return backend.reference_encoder if isinstance(backend, TakesReferences) else None
