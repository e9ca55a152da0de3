"""Submit work and follow it, from Python."""
