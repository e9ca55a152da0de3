"""Steps from one shape of the tables to the next, forward and back."""
