"""scripts/doctor.py: what it prints is what this machine and the data folder hold."""

import torch
from conftest import works

from datamodules.generated import write_food
from scripts.cli.homeworks import homeworks


def test_it_names_versions_data_and_disk(sample):
    said = works("doctor", "--data.root", sample).out
    lines = dict(line.split(None, 1) for line in said.splitlines())
    assert f"torch {torch.__version__.split('+')[0]}" in lines["packages"]
    assert lines["hw1_covid"].strip() == "sample"
    assert all("leeml data sample" in lines[name] for name in homeworks() if name != "hw1_covid")
    assert {"cpu", "fonts", "W&B", "free"} <= lines.keys()


def test_a_folder_around_the_only_images_is_no_second_set(tmp_path):
    write_food(tmp_path / "hw3_food" / "unpacked")
    said = works("doctor", "--data.root", tmp_path).out
    assert [line.split() for line in said.splitlines() if "hw3_food" in line] == [["hw3_food", "hw3_food"]]
