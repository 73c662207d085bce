"""Procedural StoryDB: deterministic pictures of illustrated people, with everything known about each picture.

Every picture is a pure function of a group seed and an index. A group is one cast in several scenes, as in
Storynizor's StoryDB (section 4 of the paper): 5 to 12 pictures, a shared character description, a mask per person.
"""

from storyloom_training.storydb.captions import Caption, describe, write_caption
from storyloom_training.storydb.groups import Group, Split, sample_group
from storyloom_training.storydb.people import Person, sample_person
from storyloom_training.storydb.picture import Picture, render

__all__ = [
    "Caption",
    "Group",
    "Person",
    "Picture",
    "Split",
    "describe",
    "render",
    "sample_group",
    "sample_person",
    "write_caption",
]
