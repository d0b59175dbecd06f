"""The page of scripts/demo.py: its tabs, what they stream, and how it is served."""
