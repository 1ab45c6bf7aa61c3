"""What the models see and say: registry, instructions, extraction, feature tables."""
