"""The demo and the studies: resumable runs and their tables."""
