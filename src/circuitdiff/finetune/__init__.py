"""Fine-tuning: recipes, their data, LoRA, and the loop."""
