"""Names, places, objects and sentences for indirect object identification: frequent words, often one token each."""

from __future__ import annotations

_EVALUATED = """
Mary John James Robert Michael William David Richard Joseph Thomas Charles Daniel Matthew Anthony Andrew Paul
Kevin Brian George Edward Jason Ryan Jacob Eric Scott Benjamin Samuel Patrick Jack Adam Henry Peter Jennifer
Linda Elizabeth Barbara Susan Jessica Sarah Karen Lisa Nancy Emily Margaret Michelle Amanda Melissa Rebecca
Laura Helen Anna Nicole Catherine Rachel Emma Maria Julie Victoria Hannah Alice Julia Sophia Jane Kate Lucy
Simon Martin Oliver Harry Arthur Claire Charlotte Lucas Oscar Tom Bob Mike Steve Chris Sam
"""
_TRAINED = """
Steven Timothy Nicholas Jonathan Stephen Larry Justin Alexander Dennis Jerry Tyler Aaron Nathan Patricia Sandra
Betty Ashley Carol Deborah Stephanie Sharon Kathleen Amy Angela Ruth Katherine Christine Samantha Janet Diane
Joyce Kelly Christina Joan Judith Olivia Martha Andrea Ann Jean Teresa Sara Marie Philip Alan Roger Walter
Albert Howard Ralph Carl Keith Raymond Sean Gregory Kenneth Bruce Ellen Caroline Leo Luke Noah Ethan Felix
Victor Marcus Tony Jim Dave Dan Ben Joe Greg Jeff
"""
_PLACES = """
airport bakery bank beach bridge castle church factory farm garden gym harbor hospital hotel lake library mall
market museum office palace park pool port restaurant river school shop stadium station temple theater tower
village zoo
"""
_OBJECTS = """
ball basket blanket book bottle box cake camera card clock coat cup drink flower gift guitar hat key knife ladder
lamp letter map mirror notebook painting pen phone photo pillow ring sandwich shirt ticket toy watch
"""

NAMES = tuple(_EVALUATED.split())  # for finding and evaluating circuits
TRAIN_NAMES = tuple(_TRAINED.split())  # for fine-tuning only: no variant is evaluated on what it learned
PLACES = tuple(_PLACES.split())
OBJECTS = tuple(_OBJECTS.split())  # each goes with `a`

# Chosen among thirty for those after which a small model expects a name and not "the", on TRAIN_NAMES. None starts with
# a name, which would then lack the space that belongs to its token elsewhere.
TEMPLATES = (
    "When {first} and {second} went to the {place} together, {repeated} gave a {object} to",
    "While {first} and {second} sat together outside the {place}, {repeated} handed a {object} to",
    "Once {first} and {second} were inside the {place}, {repeated} quietly handed a {object} to",
    "Because {first} and {second} were both at the {place} that day, {repeated} offered a {object} to",
    "On Friday {first} and {second} ate lunch together at the {place}, and {repeated} handed a {object} to",
    "In the morning {first} and {second} worked at the {place}. Then {repeated} gave a {object} to",
    "After {first} and {second} had met at the {place} several times, {repeated} gave a {object} to",
    "Yesterday {first} and {second} met at the {place}, and {repeated} passed a {object} to",
)
