"""Triton kernels of the expert layer and their autograd function; nothing about models."""
