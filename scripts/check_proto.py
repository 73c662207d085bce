"""Checks the wire contract: style (``buf lint``) and compatibility with what is released (``buf breaking``).

``proto/baseline.binpb`` is the contract that clients in the field were built with. A change that breaks them fails this
check. After a release, or for a break made on purpose, record the new contract with ``--update-baseline``.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

PROTO_ROOT = Path(__file__).resolve().parent.parent / "proto"
BASELINE = PROTO_ROOT / "baseline.binpb"


def check(proto_root: Path = PROTO_ROOT, baseline: Path = BASELINE) -> list[str]:
    """Returns everything wrong with the contract in ``proto_root``, one line each; empty when all is well.

    :param proto_root: folder with ``buf.yaml``.
    :param baseline: buf image of the released contract.
    :raises RuntimeError: when buf or the baseline is missing, or buf fails for another reason than a finding.
    """
    if not baseline.is_file():
        raise RuntimeError(f"{baseline} is missing; make it with: python scripts/check_proto.py --update-baseline")
    findings = _buf("lint", str(proto_root))
    return findings + _buf("breaking", str(proto_root), "--against", str(baseline))


def update_baseline(proto_root: Path = PROTO_ROOT, baseline: Path = BASELINE) -> None:
    """Records the contract in ``proto_root`` as the released one, without comments, so that they change freely."""
    problems = _buf("build", str(proto_root), "--exclude-source-info", "--output", str(baseline))
    if problems:
        raise RuntimeError("\n".join(problems))


def _buf(*arguments: str) -> list[str]:
    program = shutil.which("buf", path=str(Path(sys.executable).parent)) or shutil.which("buf")
    if program is None:
        raise RuntimeError("buf is not installed; run: pip install buf-bin")
    done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False)
    # 100 is buf's status for findings; they are on stdout. Any other status is a failure of buf itself.
    if done.returncode not in (0, 100):
        raise RuntimeError(f"buf {arguments[0]} failed: {done.stderr.strip() or done.stdout.strip()}")
    return (done.stdout + done.stderr).splitlines() if done.returncode else []


def main() -> int:
    """Command line of this script; returns the exit status: 0 when the contract is sound, 1 when it is not."""
    parser = argparse.ArgumentParser(description="Check the wire contract for style and compatibility.")
    parser.add_argument("--update-baseline", action="store_true", help="record the contract as the released one")
    try:
        if parser.parse_args().update_baseline:
            update_baseline()
            print(f"wrote {BASELINE}")
        findings = check()
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 1
    for finding in findings:
        print(finding)
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
