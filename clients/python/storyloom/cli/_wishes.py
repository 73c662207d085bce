"""The options that say how a story is to be made, shared by the commands that make one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from storyloom._records import Priority

RequestId = Annotated[
    str | None,
    typer.Option(
        "--request-id",
        metavar="ID",
        help="Joins the story that an earlier call with this id made, rather than make another.",
    ),
]
PriorityOption = Annotated[Priority | None, typer.Option("--priority", help="Among your own stories.")]
Deadline = Annotated[
    float | None,
    typer.Option(
        min=0.001, metavar="SECONDS", help="Refuse the story if it cannot be done in this time; stop it if it is not."
    ),
]
Timeout = Annotated[float | None, typer.Option(min=0.001, metavar="SECONDS", help="Give up after this time.")]
Detach = Annotated[bool, typer.Option("--detach", help="Start the story, print its id and leave; see `fetch`.")]
Out = Annotated[Path, typer.Option("--out", "-o", help="Folder for the results.", file_okay=False)]
NoProgress = Annotated[bool, typer.Option("--no-progress", help="Show nothing until all is done.")]
StoryId = Annotated[str, typer.Argument(metavar="ID", help="Id of the story.", show_default=False)]
