"""Which outputs agree: plug-ins that can also be called on a laptop."""
