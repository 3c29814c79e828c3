"""What a device can do, and which of the choices that depend on it are made for a run."""
