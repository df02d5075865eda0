"""How dictionaries are trained: harvest, run configs, threshold calibration."""
