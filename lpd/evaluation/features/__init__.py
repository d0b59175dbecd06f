"""From images to features: what sees them, how much is asked of a device, what is known of each."""
