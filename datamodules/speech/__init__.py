"""Recordings and speech features: reading, packing, layouts of the course."""

from typing import Literal

Part = Literal["train", "test"]
"""Of a layout; held-out utterances are cut from train."""
