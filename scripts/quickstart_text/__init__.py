"""Text to image from end to end, on a CPU: scenes of scanned digits, and what is said of them."""
