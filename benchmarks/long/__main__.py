"""`python -m benchmarks.long`."""

import signal
import sys

import typer

from benchmarks.long.run import main

# A run that is told to stop stops the server that it has started.
signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
typer.run(main)
