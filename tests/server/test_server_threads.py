"""How the threads of an engine on the CPU wait for each other: as libgomp itself tells at its start."""

import re
import sys
from pathlib import Path

import pytest

from tests.server.serving import serving


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="torch comes with libgomp on Linux alone")
@pytest.mark.parametrize(
    ("given", "spins"),
    [({}, {"20000"}), ({"GOMP_SPINCOUNT": "7"}, {"7"}), ({"OMP_WAIT_POLICY": "passive"}, {"0"})],
    ids=["default", "count", "policy"],
)
def test_threads_wait_as_they_should(
    tiny_package: Path, tmp_path: Path, given: dict[str, str], spins: set[str]
) -> None:
    environment = {"OMP_DISPLAY_ENV": "verbose", **given}
    with serving(tmp_path, tiny_package, backend=None, environment=environment) as server:
        assert set(re.findall(r"GOMP_SPINCOUNT = '(\d+)'", server.log)) == spins
