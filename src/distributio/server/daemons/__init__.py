"""Loops around one function each; they meet only in the database."""
