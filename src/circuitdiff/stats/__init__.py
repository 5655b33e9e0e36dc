"""Intervals, tests, choices and shares: numbers in, numbers out; nothing here knows a model."""
