"""Makes a story, puts a frame behind it, and makes one frame again; the other frames stay as they are.

Run a server (`make serve`), then: python examples/extend.py [--server HOST:PORT] [--steps N] [--out FOLDER]
"""

import argparse

from storyloom import Character, Settings, Story, StoryClient


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", default="localhost:50051")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--out", default="out/extend")
    options = parser.parse_args()
    with StoryClient(options.server) as client:
        kept = client.create_character("mia", "a young woman with long, wavy red hair and round glasses")
        story = Story(
            characters={"mia": Character(id=kept.character_id)},
            frames=["a portrait of {mia} walking in a park", "a portrait of {mia} sitting in a cafe"],
            settings=Settings(steps=options.steps, seed=7),
        )
        first = client.create_story(story)
        client.wait(first.story_id).save(f"{options.out}/first")
        print(f"{first.story_id}: two frames")

        longer = client.extend_story(
            first.story_id,
            ["a picture of {mia} and {otto} walking in a park"],
            new_characters={"otto": "an elderly man with short gray hair and a beard"},
        )
        client.wait(longer.story_id).save(f"{options.out}/longer")
        frames = client.get_story(longer.story_id).frames
        print(f"{longer.story_id}: {len(frames)} frames, {sum(frame.reused for frame in frames)} of them taken over")

        other = client.redo_frame(longer.story_id, 1, seed=3)
        client.wait(other.story_id).save(f"{options.out}/redone")
        frames = client.get_story(other.story_id).frames
        print(f"{other.story_id}: frame 1 made again with seed {frames[1].seed}, the others taken over")


if __name__ == "__main__":
    main()
