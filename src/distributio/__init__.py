"""Send container jobs to lent computers, and get checked results back."""

__version__ = "0.1.0"
