"""Dictionaries that others trained, as ours: one module per file format, each read from its definition.

A reader takes the tensors of a file by name and shape, and says what the dictionary computes as a
`Foreign`: an affine map of each model's activation, an encoder, thresholds, a decoder, an affine map back.
`_mapped` folds that into the weights of a SAELens dictionary. Nothing of the formats' own code is run.
"""
