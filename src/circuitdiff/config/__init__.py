"""What users write: text, JSON and YAML read strictly, names, and the types of settings."""
