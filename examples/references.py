"""Keeps a person from a picture as a character, and makes two stories with her: the picture is sent and encoded once.

Run a server (`make serve`), then: python examples/references.py [--server HOST:PORT] [--steps N] [--out FOLDER]
"""

import argparse
from pathlib import Path

from storyloom import Character, Settings, Story, StoryClient

PICTURE = Path(__file__).parent / "references" / "mia.png"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", default="localhost:50051")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--out", default="out/references")
    options = parser.parse_args()
    with StoryClient(options.server) as client:
        mia = client.create_character("mia", "a young woman", [PICTURE])
        for note in mia.reference_notes:
            print(note)
        for scale in (0.5, 1.0):
            story = Story(
                characters={"mia": Character(id=mia.character_id, identity_scale=scale)},
                frames=["a portrait of {mia} walking in a park", "a portrait of {mia} sitting in a cafe"],
                settings=Settings(steps=options.steps, seed=7),
            )
            client.generate(story).save(f"{options.out}/{scale:g}")
            print(f"{options.out}/{scale:g}: two frames, her picture at strength {scale:g}")
        # Her picture goes with her; the stories keep what was encoded of it.
        client.delete_character(mia.character_id)


if __name__ == "__main__":
    main()
