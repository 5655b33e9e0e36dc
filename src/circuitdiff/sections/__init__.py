"""The parts of a study: each takes models from the workbench and gives its sections of results.json."""
