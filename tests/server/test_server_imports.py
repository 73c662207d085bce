"""What the service's process loads: the model is the engine's, which is a process of its own."""

import subprocess
import sys


def test_the_service_loads_without_torch() -> None:
    code = "import sys, storyloom_server.server; print(*sorted({'torch', 'diffusers', 'scipy'} & sys.modules.keys()))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert ran.stdout.split() == []
