"""Which part got better? Another model's activations at a group's heads."""
