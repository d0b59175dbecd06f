"""What plans cost on real codes: options, measurement, report."""
