"""Use a trained model: generate text."""
