"""What features cause: rates, likelihoods, attribution, curves."""
