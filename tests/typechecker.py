"""What checks the types of every call in the tests: beartype, with an int wherever a float may stand."""

from beartype import BeartypeConf, beartype

typechecked = beartype(conf=BeartypeConf(is_pep484_tower=True))
