"""docs/model.md equation by equation: the model against NumPy float64 (tests/support/reference_model.py).

(16), the gradient step, is PyTorch's; (26) and (27), the metrics, are in test_metrics.py. That the number of ranks
changes nothing is in test_cl_epidtn.py, that packing and padding change nothing in test_transformer.py.
"""

from dataclasses import replace

import pytest

from tests.support.equations import (
    CONFIG,
    ROUTES,
    check_dropout,
    check_gradients_flow,
    check_heads_are_training_only,
    check_info_nce,
    check_info_nce_with_explicit_negatives,
    check_item_tower,
    check_mimic,
    check_one_item_table,
    check_order_changes_nothing,
    check_pav_input_is_detached,
    check_pointwise,
    check_routes,
    check_scores,
    check_softmax,
    check_terms,
    check_two_views_are_two_augmentations,
    check_user_tower,
    check_views_come_from_the_main_encoders,
)

SWITCHES = [
    {},
    {"similarity": "dot"},
    {"augmented_vectors": False},
    {"transformer": False},
    {"user_id_embedding": False},
    {"source_items": 0},
    {"source_categories": False},
    {"state_skip": 0.0},
    {"negative_sequence": "older_half"},
    {"history_before": "time"},
]
EACH_SWITCH = pytest.mark.parametrize("switch", SWITCHES, ids=lambda s: next(iter(s), "as it is"))


@EACH_SWITCH
def test_equations_1_6_8_9_12_and_13_the_user_tower(switch):
    check_user_tower(replace(CONFIG, **switch))


@EACH_SWITCH
def test_equations_2_7_10_11_and_13_the_item_tower(switch):
    check_item_tower(replace(CONFIG, **switch))


def test_equations_3_and_13_the_score_is_the_cosine_of_the_raw_outputs_or_their_product():
    check_scores()


def test_equations_4_and_5_mimic_is_a_sum_against_a_unit_target_without_gradient():
    check_mimic()


def test_equations_6_and_7_no_gradient_reaches_the_tables_through_the_augmented_vectors():
    check_pav_input_is_detached()


def test_equation_14_pointwise_cross_entropy_and_its_gradient():
    check_pointwise()


def test_equation_14_is_the_main_loss_when_asked_for():
    check_terms(replace(CONFIG, loss="pointwise"))


def test_equation_15_without_contrastive_losses_the_sum_is_main_and_weighted_mimics():
    check_terms(replace(CONFIG, contrastive_weight=0.0))


def test_equation_17_the_two_views_of_an_entity_are_different_augmentations():
    check_two_views_are_two_augmentations()


def test_equation_18_views_come_from_the_encoders_of_the_main_loss():
    check_views_come_from_the_main_encoders()


def test_equations_19_22_and_24_info_nce_and_the_gradients_of_both_views():
    check_info_nce()


def test_equation_21_an_explicit_negative_stands_in_the_denominator_of_its_anchor():
    check_info_nce_with_explicit_negatives()


@EACH_SWITCH
def test_equations_20_to_24_every_term_of_a_whole_step_and_their_weighted_sum(switch):
    check_terms(replace(CONFIG, **switch))


def test_equation_24_runs_over_all_candidates_when_asked():
    check_terms(replace(CONFIG, contrastive_items="candidates"))


def test_row_26_dropout_is_on_hidden_layers_and_sublayer_outputs_and_on_no_towers_output():
    check_dropout()


def test_equation_25_the_sampled_softmax_and_its_gradient():
    check_softmax()


@pytest.mark.parametrize("term", ROUTES)
def test_section_4_a_term_trains_exactly_the_weights_and_tables_that_it_may(term):
    check_routes(term)


def test_section_4_encoders_and_tables_are_not_frozen_for_any_view_or_tower():
    check_gradients_flow()


def test_section_4_the_target_table_is_the_history_table():
    check_one_item_table()


def test_section_4_the_mimic_heads_are_never_served():
    check_heads_are_training_only()


def test_the_order_of_rows_and_candidates_changes_no_term():
    check_order_changes_nothing()
