"""A zoo of small organisms with known secrets, for testing audits; imports nothing above `organisms`."""
