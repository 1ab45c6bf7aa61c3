"""Summaries over participants: means with counts, choices, and descriptive comparisons of models."""
