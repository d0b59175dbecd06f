"""Code caches: the published runs, and published caches in this project's format."""
