"""Measures: tensors in, frozen records out; no models."""
