"""What a study can ask. One file per section: settings, refusals, cost, units of work, and its part of the results."""
