"""For developers: published tables held against our selection rules."""
