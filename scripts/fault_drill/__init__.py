"""Kill the programs at random moments, and see whether the results stay the same."""
