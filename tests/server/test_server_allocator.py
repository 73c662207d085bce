"""However many threads the service has, their memory comes from the same few arenas."""

import subprocess
import sys
from pathlib import Path

import pytest

ARENAS = """
import ctypes, sys, threading
from storyloom_server.allocator import share_arenas

if sys.argv[1] == "shared":
    share_arenas()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
together = threading.Barrier(8)

def work():
    together.wait()
    libc.malloc(1000)
    together.wait()

threads = [threading.Thread(target=work) for _ in range(8)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
libc.fopen.restype = ctypes.c_void_p
file = ctypes.c_void_p(libc.fopen(sys.argv[2].encode(), b"w"))
libc.malloc_info(0, file)
libc.fclose(file)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="arenas are glibc's")
def test_threads_share_arenas(tmp_path: Path) -> None:
    arenas = {}
    for how in ("shared", "default"):
        subprocess.run([sys.executable, "-c", ARENAS, how, str(tmp_path / how)], check=True)
        arenas[how] = (tmp_path / how).read_text().count("<heap ")
    assert arenas["shared"] <= 2 < arenas["default"]
