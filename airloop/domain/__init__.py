"""Pure functions on arrays: metrics, resampling, gates, calibration, drift. NumPy and the standard library, no I/O."""
