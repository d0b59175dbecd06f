"""What extractors are asked for by.

Nothing here needs torch, so that flags are read in no time.
"""

INCEPTION = "inception"
"""The network of published FID: Inception-v3 as torch-fidelity has it."""
