"""The words and colours of the procedural world: one table per attribute, value -> how it is drawn or said."""

from __future__ import annotations

SKIN = {
    "fair": 0xFBE0CF,
    "light": 0xF1C9A5,
    "tan": 0xDDA577,
    "light brown": 0xBF8552,
    "brown": 0x8D5B34,
    "dark": 0x5A3620,
}

HAIR_COLOUR = {
    "black": 0x1E1B1F,
    "dark brown": 0x46291A,
    "brown": 0x7A4A26,
    "blonde": 0xE8C35A,
    "red": 0xC2481C,
    "gray": 0x9A9A9E,
    "white": 0xEFEFEF,
}

# How each hair style is said, with {colour} where the colour goes.
HAIR_STYLE = {
    "bald": ("a bald head",),
    "short straight": ("short, straight {colour} hair", "short straight {colour} hair", "short {colour} hair"),
    "short curly": ("short, curly {colour} hair", "short curly {colour} hair"),
    "spiky": ("spiky {colour} hair", "short, spiky {colour} hair"),
    "afro": ("a {colour} afro", "{colour} afro hair"),
    "shoulder straight": ("shoulder-length {colour} hair", "straight, shoulder-length {colour} hair"),
    "shoulder curly": ("curly, shoulder-length {colour} hair", "shoulder-length curly {colour} hair"),
    "long straight": ("long, straight {colour} hair", "long straight {colour} hair", "long {colour} hair"),
    "long wavy": ("long, wavy {colour} hair", "long wavy {colour} hair"),
    "bun": ("{colour} hair in a bun", "a {colour} bun"),
    "ponytail": ("a {colour} ponytail", "{colour} hair in a ponytail"),
    "braids": ("{colour} braids", "two {colour} braids"),
}
SHORT_STYLES = ("bald", "short straight", "short curly", "spiky", "afro")
LONG_STYLES = tuple(style for style in HAIR_STYLE if style not in SHORT_STYLES)

AGE = {
    "child": ("young", "little"),
    "young": ("young",),
    "middle-aged": ("middle-aged",),
    "elderly": ("elderly", "old"),
}
# Nouns by (age group, gender); the first is the usual one.
NOUN = {
    ("child", "female"): ("girl",),
    ("child", "male"): ("boy",),
    ("young", "female"): ("woman",),
    ("young", "male"): ("man",),
    ("middle-aged", "female"): ("woman",),
    ("middle-aged", "male"): ("man",),
    ("elderly", "female"): ("woman",),
    ("elderly", "male"): ("man",),
}

FACE_SHAPES = ("round", "oval", "square", "long")
EYE_COLOUR = {"brown": 0x5A3A1E, "blue": 0x2F74C0, "green": 0x2E8B57, "gray": 0x70777D}
BROWS = ("thin", "thick", "arched")
NOSES = ("small", "wide", "long")
MOUTHS = ("thin", "full", "wide")

GLASSES = {
    "none": (),
    "round": ("round glasses", "glasses"),
    "square": ("square glasses", "glasses"),
    "sunglasses": ("sunglasses",),
}
FACIAL_HAIR = {
    "none": (),
    "mustache": ("a mustache",),
    "goatee": ("a goatee",),
    "beard": ("a beard", "a full beard"),
}

COLOUR = {
    "red": 0xD93030,
    "orange": 0xF08A24,
    "yellow": 0xF4D03F,
    "green": 0x3C9A4B,
    "teal": 0x1FA6A0,
    "blue": 0x2F6FDB,
    "navy": 0x1F2F5F,
    "purple": 0x7D3FA8,
    "pink": 0xF08FB5,
    "brown": 0x7B5131,
    "white": 0xF6F6F2,
    "gray": 0x8E949B,
    "black": 0x26262B,
}
PATTERNS = ("plain", "striped", "checked", "dotted")

TOPS = ("sweater", "t-shirt", "shirt", "hoodie", "jacket", "coat", "dress")
BOTTOMS = ("jeans", "trousers", "skirt", "shorts")
HATS = {
    "none": (),
    "cap": ("a {colour} cap",),
    "beanie": ("a {colour} beanie",),
    "straw hat": ("a straw hat",),
}

FRAMINGS = {
    "close-up": ("a close-up of", "a close-up photo of", "a close-up picture of"),
    "portrait": ("a portrait of", "a picture of", "an illustration of"),
    "full body": ("a full-body picture of", "a full-length picture of", "a wide shot of"),
}

# Pose name -> ways to say it. "" leaves the pose unsaid.
ACTIONS = {
    "standing": ("standing", "posing"),
    "walking": ("walking", "going for a walk"),
    "running": ("running", "jogging"),
    "sitting": ("sitting", "seated"),
    "waving": ("waving", "waving hello"),
    "reading": ("reading a book", "reading"),
    "dancing": ("dancing",),
    "jumping": ("jumping", "jumping for joy"),
    "drinking": ("drinking tea", "holding a cup of tea"),
    "flowers": ("holding flowers", "holding a bunch of flowers"),
    "pointing": ("pointing", "pointing at something"),
    "painting": ("painting", "holding a paint brush"),
    "cooking": ("cooking", "holding a frying pan"),
    "thinking": ("thinking", "lost in thought"),
    "hands on hips": ("with hands on hips", "standing with hands on hips"),
    "guitar": ("playing guitar", "playing a guitar"),
}

# Scene name -> ways to say where.
SCENES = {
    "park": ("in a park", "in a green park"),
    "beach": ("on a beach", "at the beach", "on a sandy beach"),
    "forest": ("in a forest", "in the woods"),
    "kitchen": ("in a kitchen", "in a small kitchen"),
    "library": ("in a library", "in a cozy library"),
    "cafe": ("in a cafe", "in a coffee shop"),
    "city street": ("on a city street", "in a busy street"),
    "mountains": ("in the mountains", "in front of mountains"),
    "garden": ("in a garden", "in a flower garden"),
    "bedroom": ("in a bedroom",),
    "living room": ("in a living room", "in a cozy living room"),
    "classroom": ("in a classroom", "at school"),
    "lake": ("by a lake", "at a lake"),
    "snowy field": ("in a snowy field", "in the snow"),
    "market": ("at a market", "in a bustling marketplace"),
    "desert": ("in a desert",),
    "playground": ("at a playground", "on a playground"),
    "train station": ("at a train station", "on a train platform"),
    "art studio": ("in an art studio",),
    "farm": ("on a farm", "in front of a barn"),
}
INDOOR = frozenset({"kitchen", "library", "cafe", "bedroom", "living room", "classroom", "art studio"})
TIMES = {"day": ("",), "sunset": ("at sunset",), "night": ("at night",)}
EXPRESSIONS = ("smile", "neutral", "laugh")
