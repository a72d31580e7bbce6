"""Where things come from: why a step ran or was reused, what went into what, and a past run once more."""
