"""The formats in which image sets are kept: one module each, and `opening` to tell them apart."""
