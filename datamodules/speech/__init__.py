"""Recordings and speech features: reading, packing, layouts of the course."""
