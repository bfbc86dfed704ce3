"""Derivatives of any order: jets, that is truncated Taylor polynomials, through PyTorch functions."""
