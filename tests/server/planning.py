"""Stories as a server plans them: the plan of a good one, what is wrong with a bad one."""

from storyloom.v1 import story_pb2 as pb
from storyloom_server.accepted_story import AcceptedStory
from storyloom_server.catalog import ModelCatalog
from storyloom_server.messages import Scheduling
from storyloom_server.validate import StoryPlan, plan_story


def planned(story: pb.Story, catalog: ModelCatalog) -> StoryPlan:
    plan = plan_story(story, catalog)
    assert isinstance(plan, StoryPlan), plan
    return plan


def violations(story: pb.Story, catalog: ModelCatalog) -> dict[str, str]:
    """Message by path."""
    found = plan_story(story, catalog)
    assert not isinstance(found, StoryPlan)
    return {violation.path: violation.message for violation in found}


def accepted(story: pb.Story, catalog: ModelCatalog) -> AcceptedStory:
    return AcceptedStory("s", "t", planned(story, catalog), Scheduling(), 0.0)
