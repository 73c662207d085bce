"""The small story that every model makes before the server is ready."""

from storyloom.v1 import story_pb2 as pb
from storyloom_model.jobs import StoryJob
from storyloom_server.catalog import CatalogError, ModelCatalog, ServedModel
from storyloom_server.validate import StoryPlan, plan_story


def warm_up_job(model: ServedModel) -> StoryJob:
    """Two frames of one character in four steps: little that runs every part, cross-frame attention included.

    Raises:
        CatalogError: the package's own limits refuse such a story.
    """
    limits = model.manifest.limits
    story = pb.Story(
        characters=[pb.Character(name="someone", description="a cat")],
        frames=[pb.Frame(prompt="{someone}")] * min(2, limits.max_frames),
        settings=pb.Settings(steps=min(4, limits.max_steps), seed=0),
    )
    plan = plan_story(story, ModelCatalog((model,)))
    if isinstance(plan, StoryPlan):
        return plan.job
    refused = "; ".join(f"{violation.path} {violation.message}" for violation in plan)
    raise CatalogError(f"model {model.name} cannot make even a small story ({refused}); widen its limits")
