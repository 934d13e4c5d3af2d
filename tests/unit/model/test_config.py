"""Settings of the model refuse what cannot work, by name."""

import pytest

from model.config import ModelConfig


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("dim", 0),
        ("heads", 3),
        ("layers", 0),
        ("temperature", 0.0),
        ("init_std", -0.1),
        ("dropout", 1.0),
        ("input_mask_ratio", -0.1),
        ("logq_strength", 1.5),
        ("uniform_negatives", -1),
        ("contrastive_weight", -1.0),
        ("similarity", "euclid"),
        ("contrastive_items", "all"),
        ("loss", "hinge"),
        ("history_mask", "future"),
    ],
)
def test_a_value_that_cannot_work_is_refused_by_its_name(setting, value):
    with pytest.raises(ValueError, match=rf"model\.{setting} must .*{value}"):
        ModelConfig(**{setting: value})


def test_everything_of_the_model_is_on_by_default():
    config = ModelConfig()
    assert config.augmented_vectors
    assert config.transformer
    weights = (
        config.contrastive_sequence_weight,
        config.contrastive_attribute_weight,
        config.contrastive_item_weight,
        config.mimic_user_weight,
        config.mimic_item_weight,
    )
    assert config.contrastive_weight > 0
    assert min(weights) > 0
