"""How an agent runs an assignment."""
