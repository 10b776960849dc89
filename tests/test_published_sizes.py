"""Networks of levels that are the course's code, built from their configs: its published numbers of parameters."""

import pytest
import torch
from jsonargparse import ActionConfigFile

from datamodules.files.places import PROJECT
from modules.base import HomeworkModule
from scripts.cli.config_parser import ConfigParser, known_classes
from scripts.cli.yaml_files import read_yaml
from scripts.run.checkpoint import inline

PUBLISHED = {  # printed by the course's notebooks, or counted in their networks
    "hw2_phoneme/simple_2022": 86_569,
    "hw3_food/simple": 12_833_803,
    "hw3_food/simple_2021": 4_634_891,
    "hw4_speaker/simple": 125_896,
    "hw4_speaker/simple_2023": 125_896,
    "hw5_translation/simple": 11_247_872,
    "hw5_translation/medium": 11_247_872,  # the course's code of 2021
}
FACTS = {
    "hw2_phoneme": {"features": 39, "window": 1, "silence": 0, "transitions": torch.zeros(41, 41), "classes": 41},
    "hw3_food": {"mean": torch.zeros(3), "deviation": torch.ones(3), "classes": 11},
    "hw4_speaker": {"features": 40, "classes": 600},
}
TOKENS = 7992  # of the course's dictionary


def model_of(level):
    known_classes()
    parser = ConfigParser(prog="leeml")
    parser.add_argument("--config", action=ActionConfigFile)
    parser.add_lightning_class_args(HomeworkModule, "model", subclass_mode=True)
    config = read_yaml(PROJECT / "configs" / f"{level}.yaml")
    return parser.instantiate_classes(parser.parse_args(["--config", inline({"model": config["model"]})])).model


@pytest.mark.parametrize("level", PUBLISHED)
def test_parameters(level):
    model = model_of(level)
    homework = level.split("/")[0]
    if homework == "hw5_translation":  # whose facts hold a trained tokenizer
        model = model.new_net(TOKENS)
    else:
        facts = FACTS[homework]
        model.build(facts | {"classes": [str(number) for number in range(facts["classes"])]})
    assert sum(p.numel() for p in model.parameters()) == PUBLISHED[level]
