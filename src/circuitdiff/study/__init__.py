"""A study: sections of units of work, carried out by workers, kept as records, told as typed results."""
