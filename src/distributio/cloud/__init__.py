"""Other clouds."""
