"""Which emoji are kept from training, so that composing can be told from recalling."""

from __future__ import annotations


# Each is a combination of parts that training shows apart: other hearts and other things of that colour, the same
# activity by another person, the face of the same animal. The key is a code point as in [`Emoji`], the value names
# the combination.
HELD_OUT: dict[str, str] = {
    # A colour and a thing
    "1f49a": "heart: green",
    "1f9e1": "heart: orange",
    "1f4d8": "book: blue",
    "1f7e3": "circle: purple",
    "1f7e8": "square: yellow",
    "1f538": "small diamond: orange",
    # An hour, whole or half
    "1f553": "clock: four o'clock",
    "1f558": "clock: nine o'clock",
    "1f55d": "clock: half past two",
    "1f562": "clock: half past seven",
    # An animal, as a face or whole
    "1f405": "animal: whole tiger",
    "1f407": "animal: whole rabbit",
    "1f437": "animal: pig face",
    "1f434": "animal: horse face",
    # Features of faces
    "1f601": "face: grinning, smiling eyes",
    "1f619": "face: kissing, smiling eyes",
    "1f61c": "face: winking, tongue",
    "1f630": "face: open mouth, cold sweat",
    "1f63b": "cat face: smiling, heart eyes",
    "1f63f": "cat face: crying",
    # A person and what she or he is or does
    "1f469-200d-1f692": "person: woman firefighter",
    "1f469-200d-1f680": "person: woman astronaut",
    "1f468-200d-1f3a4": "person: man singer",
    "1f468-200d-1f373": "person: man cook",
    "1f469-200d-2696": "person: woman judge",
    "1f575-200d-2640": "person: woman detective",
    "1f468-200d-1f33e": "person: man farmer",
    "1f9b8-200d-2640": "person: woman superhero",
    "1f9db-200d-2642": "person: man vampire",
    "1f9dd-200d-2640": "person: woman elf",
    "1f3c4-200d-2640": "person: woman surfing",
    "1f6b4-200d-2642": "person: man riding a bicycle",
    "1f939-200d-2640": "person: woman juggling",
    "1f926-200d-2642": "person: man facepalming",
    "1f9d8-200d-2640": "person: woman meditating",
    "1f469-200d-1f9b1": "person: woman with curly hair",
    "1f468-200d-1f9b3": "person: man with white hair",
    # A direction, a view, a state
    "1f448": "hand: pointing left",
    "1f316": "moon: waning gibbous",
    "1f696": "from the front: taxi",
    "1f4ed": "mailbox: open, lowered flag",
    "1f31c": "moon: last quarter with a face",
    "1f326": "weather: sun behind a rain cloud",
    "1f509": "speaker: one sound wave",
}
