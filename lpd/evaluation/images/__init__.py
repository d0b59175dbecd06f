"""Images that are there already: found, seen once in parts, compared, reconstructed."""
