"""Tomorrow's share of positive tests, for each row of a file such as covid.test.csv: python example.py FILE."""

import csv
import json
import sys
from collections import Counter
from pathlib import Path

import numpy as np
from runtime import load

facts = json.loads((Path(__file__).parent / "facts.json").read_text(encoding="utf-8"))
with open(sys.argv[1], newline="", encoding="utf-8-sig") as file:
    header, *rows = [row for row in csv.reader(file) if row]

seen: Counter[str] = Counter()
column = {}  # the same measure of another day has the same name in some editions: cli, cli.1, cli.2
for number, name in enumerate(header):
    column[f"{name}.{seen[name]}" if seen[name] else name] = np.array([row[number] for row in rows])
    seen[name] += 1

x = np.empty((len(rows), len(facts["features"])), np.float32)
for number, name in enumerate(facts["features"]):
    if name in column:
        x[:, number] = column[name].astype(np.float64)
    else:  # the difference of two days
        later, earlier = name.split("-")
        x[:, number] = column[later].astype(np.float64) - column[earlier].astype(np.float64)

for row, percent in enumerate(load("model")(x=x)["percent"]):
    print(f"{row},{percent:.6f}")
