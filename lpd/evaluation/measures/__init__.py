"""From features to numbers: statistics, metrics, and numbers as text."""
