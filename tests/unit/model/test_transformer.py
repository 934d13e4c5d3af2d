"""Prefix packing: what an event's state may and may not depend on."""

import numpy as np
import pytest
import torch

from model.config import ModelConfig
from model.token_rows import TokenRows, pack, reads_at
from model.transformer import Block, RelativeBias, SequenceEncoder, mean_and_last


def _alone(*lengths):
    """One row per sequence, padded to the longest."""
    length_N = torch.tensor(lengths)
    width = int(length_N.max())
    valid = torch.arange(width) < length_N.unsqueeze(1)
    number = torch.arange(len(lengths)).unsqueeze(1)
    return TokenRows(
        token_RL=valid.long(),
        sequence_RL=torch.where(valid, number, -1),
        within_RL=torch.where(valid, torch.arange(width), 0),
        start_N=torch.arange(len(lengths)) * width,
        length_N=length_N,
    )


def _read(states, rows, sequence, position, window):
    """The mean and the last state that events read."""
    both = mean_and_last(states, rows, reads_at(rows, sequence, position, window), window)
    return both.chunk(2, dim=1)


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
    encoder, tokens, rows = _encoder(), torch.randn(1, 9, 8), _alone(9)
    base = encoder(tokens, rows)
    for changed in range(9):
        other = tokens.clone()
        other[0, changed] = torch.randn(8)
        differs = (encoder(other, rows) - base).abs().amax(dim=2)[0] > 1e-6
        assert differs.tolist() == [t >= changed for t in range(9)]


@torch.no_grad()
def test_a_state_does_not_depend_on_padding_or_on_the_other_rows():
    encoder, tokens = _encoder(), torch.randn(3, 9, 8)
    alone = encoder(tokens[1:2, :6], _alone(6))
    assert torch.allclose(encoder(tokens, _alone(9, 6, 9))[1, :6], alone[0], atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("lengths", [(7, 6, 5, 1), (40, 30, 20, 10, 9, 9), (3, 0, 70, 0, 64, 2, 2)])
def test_sharing_a_row_changes_no_state_and_nothing_that_an_event_reads(lengths):
    encoder = _encoder(window=20)
    rows = pack(np.ones(sum(lengths), np.int64), np.array(lengths))
    assert rows.shared
    each = [torch.randn(1, length, 8) for length in lengths]
    tokens = torch.randn(*rows.token_RL.shape, 8)  # Noise also where there is padding.
    for n, sequence in enumerate(each):
        tokens[rows.sequence_RL == n] = sequence[0]
    states = encoder(tokens, rows)
    assert torch.isfinite(states).all()
    for n, length in enumerate(lengths):
        if length:
            alone = encoder(each[n], _alone(length))
            assert torch.allclose(states[rows.sequence_RL == n], alone[0], atol=1e-5)
            event = torch.arange(length + 1)
            read = _read(states, rows, torch.full_like(event, n), event, 20)
            want = _read(alone, _alone(length), torch.zeros_like(event), event, 20)
            assert torch.allclose(torch.stack(read), torch.stack(want), atol=1e-5)


@torch.no_grad()
def test_a_token_changes_no_state_of_another_sequence_in_its_row():
    encoder, rows = _encoder(), pack(np.ones(12, np.int64), np.array([4, 5, 3]))
    assert rows.token_RL.shape == (1, 12)
    tokens = torch.randn(1, 12, 8)
    base = encoder(tokens, rows)
    for n in range(3):
        other = torch.where((rows.sequence_RL == n).unsqueeze(2), torch.randn(8), tokens)
        differs = (encoder(other, rows) - base).abs().amax(dim=2) > 1e-6
        assert torch.equal(differs, rows.sequence_RL == n)


@torch.no_grad()
def test_one_layer_sees_exactly_the_window():
    encoder, tokens, rows = _encoder(window=3, layers=1), torch.randn(1, 8, 8), _alone(8)
    base = encoder(tokens, rows)
    other = tokens.clone()
    other[0, 2] = torch.randn(8)
    differs = (encoder(other, rows) - base).abs().amax(dim=2)[0] > 1e-6
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
    assert torch.allclose(block._attend(x, None)[0], block.to_out(mixed.reshape(5, 8)), atol=1e-12)


def test_mean_and_last_are_those_of_the_states_before_the_event():
    states = torch.randn(2, 7, 4)
    sequence, position = torch.tensor([0, 0, 0, 1]), torch.tensor([0, 1, 6, 3])
    mean, last = _read(states, _alone(7, 7), sequence, position, 4)
    assert last[0].tolist() == mean[0].tolist() == [0.0] * 4
    for e in (1, 2, 3):
        before = states[sequence[e], : position[e]]
        assert torch.allclose(last[e], before[-1])
        assert torch.allclose(mean[e], before[-4:].mean(0), atol=1e-6)


def test_a_position_at_the_end_of_the_row_reads_the_last_state():
    states = torch.randn(1, 3, 4)
    mean, last = _read(states, _alone(3), torch.tensor([0]), torch.tensor([3]), 50)
    assert torch.equal(last[0], states[0, 2])
    assert mean[0].tolist() == pytest.approx(states[0].mean(0).tolist(), abs=1e-6)
