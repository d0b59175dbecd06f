"""What orders lose on Gaussian fields: how it is measured, named, tabled and drawn."""
