"""circuitdiff: what fine-tuning did to the circuit behind a behaviour."""
