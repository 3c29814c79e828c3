"""Estimates of what a configuration costs: parameters, FLOPs, bytes, seconds, layouts.

Everything is computed from the configuration alone. Nothing here imports torch.
"""
