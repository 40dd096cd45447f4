"""From raw scores to a decision: calibration, thresholds, and which sensors it was."""
