"""How sweeps of evaluations are drawn."""
