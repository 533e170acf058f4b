"""Presets and settings: the seven presets, and errors that name the setting and its range."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import heimdall_training.model_config
from heimdall_tracking.errors import ConfigurationError
from heimdall_training.model_config import (
    CONFIGS,
    BackboneArchitecture,
    ModelConfig,
    get_backbone_info,
    get_model_config,
)


@pytest.mark.parametrize(
    ("name", "backbone", "pretrained", "frozen", "rate", "steps"),
    [
        ("production_high_accuracy", "convnext_large", True, False, 1e-3, 50_000),
        ("production_balanced", "convnext_base", True, False, 1e-3, 30_000),
        ("production_lightweight", "efficientnet_b4", True, False, 1e-3, 20_000),
        ("dev_fast", "convnext_small", True, True, 5e-4, 5_000),
        ("dev_test", "efficientnet_b3", False, False, 1e-3, 1_000),
        ("experimental_vit", "vit_b_16", True, False, 1e-4, 50_000),
        ("experimental_resnet", "resnet101", True, False, 1e-3, 30_000),
    ],
)
def test_a_preset(name, backbone, pretrained, frozen, rate, steps):
    config = get_model_config(name)
    assert config.backbone.value == backbone
    assert (config.pretrained, config.freeze_backbone) == (pretrained, frozen)
    assert (config.learning_rate, config.num_training_steps) == (rate, steps)
    assert (config.weight_decay, config.warmup_steps) == (1e-5, 500)
    assert (config.n_mels, config.n_frames) == (128, 32)


def test_there_are_seven_presets_and_an_unknown_one_is_answered_with_their_names():
    assert len(CONFIGS) == 7
    with pytest.raises(
        ConfigurationError, match="there is no preset 'prod': it must be one of production_high"
    ):
        get_model_config("prod")


def test_settings_survive_json():
    config = get_model_config("dev_fast").replace(learning_rate=0.5)
    assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize("name", ["convnext_base", "CONVNEXT_BASE", "CONVNEXT_MEDIUM"])
def test_a_backbone_has_a_name_of_torchvision_and_one_of_ours(name):
    assert BackboneArchitecture.of(name) is BackboneArchitecture.CONVNEXT_MEDIUM
    assert get_backbone_info(name).features == 1024


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"backbone": "convnext"}, "backbone='convnext' is not valid: it must be one of convnext_tiny, "),
        ({"backbone": None}, "backbone=None is not valid"),
        ({"pretrained": "False"}, "pretrained='False' is not valid: it must be True or False"),
        ({"sigma_floor_m": 0.0}, "sigma_floor_m=0.0 is not valid: it must be a number above 0"),
        ({"learning_rate": float("nan")}, "learning_rate=nan is not valid: it must be a number above 0"),
        ({"weight_decay": -1}, "weight_decay=-1 is not valid: it must be a number of at least 0"),
        ({"num_training_steps": 1.5}, "num_training_steps=1.5 .* a whole number of at least 1"),
        ({"warmup_steps": 10_000}, r"warmup_steps=10000 .* below num_training_steps \(10000\)"),
        ({"n_mels": 16}, "n_mels=16 is not valid: it must be a whole number of at least 32"),
        ({"uncertainty_max": 1.0}, "uncertainty_max=1.0 .* in degrees; .* sigma_floor_m"),
        ({"lr": 1e-3}, "there is no setting 'lr': it must be one of backbone, pretrained"),
    ],
)
def test_a_wrong_setting_is_named_with_its_range(settings, message):
    with pytest.raises(ConfigurationError, match=message):
        ModelConfig.from_dict(settings)


def test_the_module_imports_no_torch(run_script):
    file = Path(heimdall_training.model_config.__file__)
    script = run_script(
        f"""
        import importlib.util, sys
        spec = importlib.util.spec_from_file_location("model_config", {str(file)!r})
        module = sys.modules["model_config"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        print(len(module.CONFIGS), [name for name in ("torch", "heimdall_training") if name in sys.modules])
        """
    )
    assert script.out == "7 []\n", script.err
