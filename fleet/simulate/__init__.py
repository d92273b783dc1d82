"""A fleet that is not there: plausible rows of every stream, with incidents, marked as simulated."""
