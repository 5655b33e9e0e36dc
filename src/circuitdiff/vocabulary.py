"""Everyday words for the built-in tasks and the planted models: short ones, which most tokenizers keep whole."""

from __future__ import annotations

import string

_EVALUATED = """
apple ball basket bell bike blanket book bottle bowl bread brick bridge brush bucket button cake candle card
chain chair cheese clock cloth coat coffee coin corn crown cup desk dish door dress drum egg engine feather
flag flower fork gift glass glove guitar hammer hat helmet ice jacket key knife ladder lamp leaf lemon letter
lock map mask meat milk mirror mouse nail needle newspaper notebook orange paint pan paper pen pencil phone
photo piano pillow pipe plant plate pot purse radio ring rope salt shell shirt shoe soap spoon stone sword
ticket towel toy watch wheel whistle
"""
_TRAINED = """
bag banana beer belt bird boat bone boot branch bus camera can car cat chip clay coal computer copper cotton
cow cream dog doll duck fan fish frame fruit fur gold grass gun hook horse iron jar juice knot leather
medicine metal monkey net nut oil onion painting pig plastic powder rabbit rice rock rod root rubber sand
screen seed sheep silk silver snake sock stick string sugar table tank tea tool tree truck wine wire wood wool
"""

LABELS = tuple(string.ascii_uppercase)
OBJECTS = tuple(_EVALUATED.split())  # for finding, masking and evaluating circuits
TRAIN_OBJECTS = tuple(_TRAINED.split())  # for fine-tuning only: no variant is evaluated on what it learned
