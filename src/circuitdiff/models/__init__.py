"""Models: reading them, checking them, fine-tuning them."""

from circuitdiff.models.loading import load_model

__all__ = ["load_model"]
