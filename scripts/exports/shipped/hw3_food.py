"""The likeliest classes of a photo: python example.py FILE.jpg."""

import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from runtime import load

facts = json.loads((Path(__file__).parent / "facts.json").read_text(encoding="utf-8"))
side = facts["image_size"]
photo = Image.open(sys.argv[1])
photo.draft(None, (2 * side, 2 * side))  # of a JPEG only what is needed
image = ImageOps.exif_transpose(photo).convert("RGB").resize((side, side), Image.Resampling.BILINEAR)
x = np.array(image).transpose(2, 0, 1)[None]  # uint8 (1, 3, S, S); scaling is in the graph

shares = np.exp(load("model")(x=x)["log_probabilities"][0])
for label in shares.argsort()[::-1][:5]:
    print(f"{shares[label]:.4f} {facts['classes'][label]}")
