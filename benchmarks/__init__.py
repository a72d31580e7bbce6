"""Measurements, side by side with a peer or a limit. Nothing here is part of the tests."""
