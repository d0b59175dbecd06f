"""Programs around lpd/: the quickstart, the published runs, benchmarks, figures, checks."""
