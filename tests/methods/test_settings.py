"""Settings: what is accepted, what each name means, and that no torch is needed to say so."""

import subprocess
import sys

import pytest
from pydantic import ValidationError

from abridged.methods import METHODS
from abridged.methods.quantization.settings import ActivationSettings, EmbeddingSettings, WeightSettings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bits": 1, "quantizer": "twn"}, "twn has no 1-bit form"),
        ({"bits": 1, "quantizer": "minmax"}, "minmax has no 1-bit form"),
        ({"bits": 2, "quantizer": "binary"}, "bits must be 1"),
        ({"bits": 8, "quantizer": "tbt"}, "bits must be 1 or 2"),
        ({"bits": 7}, "bits"),
        ({"granularity": "per_group"}, "group_size"),
        ({"group_size": 8}, "group_size"),
        ({"bits": 4, "levels": "balanced"}, "2 bits only"),
        ({"quantizer": "twn", "levels": "balanced"}, "ternary at 2 bits"),
        ({"bits": 4, "packing": "base3"}, "base3"),
        ({"levels": "balanced", "packing": "base3"}, "base3"),
        ({"quantizer": "paretoq", "packing": "base3"}, "base3"),
        ({"quantizer": "laq", "initialization": "least_squares"}, "learns no scale"),
        ({"quantizer": "tbt", "scale_gradient": "full"}, "learns no scale"),
        ({"bitz": 2}, "bitz"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ValidationError, match=message):
        WeightSettings(**settings)


@pytest.mark.parametrize(
    ("settings", "grid", "centered", "clipped", "full"),
    [
        ({}, "ternary", False, True, True),
        ({"quantizer": "pact"}, "ternary", False, True, False),
        ({"quantizer": "paretoq"}, "balanced", False, True, True),
        ({"quantizer": "paretoq", "levels": "ternary"}, "ternary", False, True, True),
        ({"quantizer": "paretoq", "bits": 1}, "binary", False, True, True),
        ({"bits": 1}, "binary", True, False, True),
        ({"bits": 1, "center": False, "weight_gradient": "clipped"}, "binary", False, True, True),
        ({"quantizer": "tbt"}, "ternary", True, False, True),
        ({"bits": 4, "scale_gradient": "clipped_only"}, "integer", False, True, False),
    ],
)
def test_null_means_the_quantizers_own_form(settings, grid, centered, clipped, full):
    made = WeightSettings(**settings)
    assert (made.grid, made.centered) == (grid, centered)
    assert (made.clips_weight_gradient, made.full_scale_gradient) == (clipped, full)


def test_every_setting_is_described():
    for settings in (METHODS["quantize"], WeightSettings, EmbeddingSettings, ActivationSettings):
        for name, field in settings.model_fields.items():
            assert field.description, f"{settings.__name__}.{name}"


def test_embeddings_have_a_scale_per_row_by_default():
    method = METHODS["quantize"](embeddings={"bits": 4})
    assert method.embeddings.granularity == "per_channel"
    assert method.weights.granularity == "per_tensor"


def test_torch_is_not_needed_to_read_settings():
    code = (
        "import sys; from abridged.methods import METHODS; METHODS['quantize'](weights={'bits': 4});"
        "METHODS['kronecker'](); METHODS['drop_layers'](); METHODS['prune'](budget={'parameters': 0.5});"
        "METHODS['lora'](); METHODS['prompt_tuning'](); assert len(METHODS) == 6;"
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
