"""Starts a story, breaks off in the middle, and goes on behind the last event that was seen.

The story belongs to the server: it goes on while nobody listens. Run a server (`make serve`), then:
python examples/resume.py [--server HOST:PORT] [--steps N] [--out FOLDER]
"""

import argparse
from contextlib import closing

from storyloom import FrameDone, Progress, Settings, Story, StoryClient, StoryEvent


def show(event: StoryEvent) -> None:
    """One line for each event that says something."""
    if isinstance(event, Progress):
        print(f"event {event.sequence}: step {event.step} of {event.steps}")
    elif isinstance(event, FrameDone):
        print(f"event {event.sequence}: frame {event.frame_index} is done")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", default="localhost:50051")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--out", default="out/resume")
    options = parser.parse_args()
    story = Story(
        characters={"mia": "a young woman with long, wavy red hair and round glasses"},
        frames=["a portrait of {mia} walking in a park", "a portrait of {mia} sitting in a cafe"],
        settings=Settings(steps=options.steps, seed=7),
    )

    with StoryClient(options.server) as client:
        story_id = client.create_story(story).story_id
        print(f"story {story_id} is accepted")
        seen = 0
        with closing(client.watch(story_id)) as events:
            for event in events:
                show(event)
                seen = event.sequence
                if isinstance(event, Progress) and event.step >= 2:
                    break
    print(f"broke off after event {seen}; this client is gone")

    with StoryClient(options.server) as client:
        for event in client.watch(story_id, after=seen):
            show(event)
        folder = client.wait(story_id).save(options.out)
    print(f"the pictures are in {folder}")


if __name__ == "__main__":
    main()
