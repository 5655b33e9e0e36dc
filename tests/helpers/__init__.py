"""What tests of several rooms share: tiny models, invented prompts and results, and what a result is held against."""
