"""Readers of dictionaries from other libraries: one module per file format, written from its definition.

A reader takes a file's tensors by name and shape and describes what the dictionary computes as a
`Foreign`: an affine map of each model's activation, an encoder, thresholds, a decoder, an affine map back.
`_mapped` folds that into the weights of a SAELens dictionary. None of the formats' own code is run.
"""
