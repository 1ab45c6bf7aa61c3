"""Thin nipype interfaces: load through io, call the rooms, save through io."""
