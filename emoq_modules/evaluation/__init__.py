"""What predictions are worth: metrics, intervals, calibration, plots.

A run's results are written and read here, too. Here lives nothing that needs a
model.
"""
