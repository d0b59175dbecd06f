"""What scripts/study_orders.py measures: orders of training and of decoding, on the digits."""
