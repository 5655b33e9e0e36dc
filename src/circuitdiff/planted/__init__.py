"""Planted models: decoders whose circuit is known because it was written into their weights."""

from circuitdiff.planted.build import Planted, build_planted, planted_names

__all__ = ["Planted", "build_planted", "planted_names"]
