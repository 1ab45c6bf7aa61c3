"""Figures, methods text and pages; ready values come in, strings and bytes go out."""
