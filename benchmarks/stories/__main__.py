"""`python -m benchmarks.stories`."""

import typer

from benchmarks.stories.run import main

typer.run(main)
