"""Images that a model makes: the settings of a sweep, their chunks, their numbers."""
