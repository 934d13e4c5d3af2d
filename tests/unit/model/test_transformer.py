"""Prefix packing: what an event's state may and may not depend on."""

import pytest
import torch

from model.config import ModelConfig
from model.transformer import Block, RelativeBias, SequenceEncoder, last_and_mean


def _encoder(window=50, layers=2):
    torch.manual_seed(0)
    config = ModelConfig(dim=8, heads=2, layers=layers, history_length=window, dropout=0.0)
    encoder = SequenceEncoder(config).eval()
    for name, parameter in encoder.named_parameters():
        if name.endswith("bias_HW"):
            torch.nn.init.normal_(parameter)
    return encoder


@torch.no_grad()
def test_a_state_depends_on_no_later_token_and_on_every_earlier_one_in_the_window():
    encoder, tokens = _encoder(), torch.randn(1, 9, 8)
    base = encoder(tokens)
    for changed in range(9):
        other = tokens.clone()
        other[0, changed] = torch.randn(8)
        differs = (encoder(other) - base).abs().amax(dim=2)[0] > 1e-6
        assert differs.tolist() == [t >= changed for t in range(9)]


@torch.no_grad()
def test_a_state_does_not_depend_on_padding_or_on_the_other_rows():
    encoder, tokens = _encoder(), torch.randn(3, 9, 8)
    alone = encoder(tokens[1:2, :6])
    assert torch.allclose(encoder(tokens)[1, :6], alone[0], atol=1e-6)


@torch.no_grad()
def test_one_layer_sees_exactly_the_window():
    encoder, tokens = _encoder(window=3, layers=1), torch.randn(1, 8, 8)
    base = encoder(tokens)
    other = tokens.clone()
    other[0, 2] = torch.randn(8)
    differs = (encoder(other) - base).abs().amax(dim=2)[0] > 1e-6
    assert differs.tolist() == [2 <= t < 5 for t in range(8)]


@torch.no_grad()
def test_positions_are_relative_so_a_shifted_sequence_keeps_its_attention():
    bias = RelativeBias(2, 4)
    torch.nn.init.normal_(bias.bias_HW)
    table = bias(6)
    assert torch.equal(table[:, :4, :4], table[:, 2:, 2:])
    assert float(table[1, 5, 3]) == float(bias.bias_HW[1, 2])


@torch.no_grad()
def test_attention_is_softmax_of_scaled_products_plus_the_bias():
    torch.manual_seed(1)
    block = Block(ModelConfig(dim=8, heads=2, history_length=3, dropout=0.0)).double()
    torch.nn.init.normal_(block.bias.bias_HW)
    x = torch.randn(1, 5, 8, dtype=torch.float64)
    query, key, value = block.to_qkv(x[0]).view(5, 3, 2, 4).unbind(1)
    mixed = torch.zeros(5, 2, 4, dtype=torch.float64)
    for head in range(2):
        for i in range(5):
            seen = [j for j in range(5) if 0 <= i - j < 3]
            logits = torch.stack(
                [query[i, head] @ key[j, head] / 2 + block.bias.bias_HW[head, i - j] for j in seen]
            )
            mixed[i, head] = logits.softmax(0) @ value[seen, head]
    assert torch.allclose(block._attend(x)[0], block.to_out(mixed.reshape(5, 8)), atol=1e-12)


def test_last_and_mean_are_those_of_the_states_before_the_event():
    states = torch.randn(2, 7, 4)
    sequence, position = torch.tensor([0, 0, 0, 1]), torch.tensor([0, 1, 6, 3])
    last, mean = last_and_mean(states, sequence, position, 4)
    assert last[0].tolist() == mean[0].tolist() == [0.0] * 4
    for e in (1, 2, 3):
        before = states[sequence[e], : position[e]]
        assert torch.allclose(last[e], before[-1])
        assert torch.allclose(mean[e], before[-4:].mean(0), atol=1e-6)


def test_a_position_at_the_end_of_the_row_reads_the_last_state():
    states = torch.randn(1, 3, 4)
    last, mean = last_and_mean(states, torch.tensor([0]), torch.tensor([3]), 50)
    assert torch.equal(last[0], states[0, 2])
    assert mean[0].tolist() == pytest.approx(states[0].mean(0).tolist(), abs=1e-6)
