"""What should happen: pure rules over frozen values."""
