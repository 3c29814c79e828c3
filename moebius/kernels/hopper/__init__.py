"""The two products with a costly epilogue, written for Hopper by hand (Triton's Gluon)."""
