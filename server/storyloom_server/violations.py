"""What is wrong with a request, field by field."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Violation:
    """One bad field of a request: its path, such as ``story.frames[2].prompt``, and what to do about it."""

    path: str
    message: str


@dataclass(slots=True)
class Findings:
    """Collects violations; true when there are any."""

    violations: list[Violation] = field(default_factory=list)

    def add(self, path: str, message: str) -> None:
        """Notes that the field at ``path`` is bad."""
        self.violations.append(Violation(path, message))

    def has(self, path: str) -> bool:
        """True when a field at or below ``path`` is bad."""
        return any(violation.path.startswith(path) for violation in self.violations)

    def __bool__(self) -> bool:
        return bool(self.violations)
