"""What runs for which entity, and how."""
