"""LPD from end to end on scanned handwritten digits."""
