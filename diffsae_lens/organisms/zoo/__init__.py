"""A zoo of small organisms whose secret is known, to try audits on; imports nothing above `organisms`."""
