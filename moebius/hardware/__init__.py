"""What a device can do, and the choices of a run that depend on it."""
