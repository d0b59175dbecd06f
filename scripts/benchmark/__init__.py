"""Measurements of speed: each prints what it ran on, and ratios taken side by side."""
