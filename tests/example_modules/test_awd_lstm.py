import pytest
import torch
from torch import nn

from aida_lightning import Aida
from aida_lightning.example_modules import AWDLSTM
from aida_lightning.example_modules.awd_lstm import WeightDropLSTM, locked_dropout

NONE = dict.fromkeys(
    ["input_dropout", "hidden_dropout", "output_dropout", "word_dropout", "weight_dropout"], 0.0
)


def small(num_layers: int = 2, **options) -> AWDLSTM:
    torch.manual_seed(0)
    sizes = {"vocab_size": 30, "embedding_size": 6, "hidden_size": 9}
    return AWDLSTM(num_layers=num_layers, **{**sizes, **options})


def words(time: int = 11, batch: int = 4) -> torch.Tensor:
    return torch.randint(30, (time, batch), generator=torch.Generator().manual_seed(1))


def naive_lstm(inputs, weight_ih, weight_hh, bias, h, c):
    """The recurrence of Hochreiter and Schmidhuber, a time step at a time."""
    outputs = []
    for x in inputs:
        i, f, g, o = (x @ weight_ih.T + h @ weight_hh.T + bias).chunk(4, dim=-1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        outputs.append(h)
    return torch.stack(outputs), h, c


@pytest.mark.parametrize(
    ("num_layers", "count"), [(1, 5_293_200), (2, 13_632_400), (3, 24_221_600)]
)
def test_it_has_the_papers_number_of_parameters(num_layers, count):
    with torch.device("meta"):
        network = AWDLSTM(num_layers=num_layers)
    assert sum(p.numel() for p in network.parameters()) == count


def test_the_last_layer_is_as_wide_as_the_embedding():
    shapes = [(m.input_size, m.hidden_size) for m in small(num_layers=3).lstms]
    assert shapes == [(6, 9), (9, 9), (9, 6)]


@pytest.mark.parametrize("num_layers", [1, 2, 3])
@pytest.mark.parametrize("training", [False, True])
def test_without_dropout_it_is_a_naive_stack_of_lstms(num_layers, training):
    network = small(num_layers, **(NONE if training else {})).double().train(training)
    start = [
        (torch.randn(1, 4, m.hidden_size).double(), torch.randn(1, 4, m.hidden_size).double())
        for m in network.lstms
    ]
    output = network(words(), start)
    hidden = network.embedding.weight[words()]
    for lstm, (h, c), (new_h, new_c) in zip(network.lstms, start, output.states, strict=True):
        bias = lstm.bias_ih_l0 + lstm.bias_hh_l0
        hidden, h, c = naive_lstm(hidden, lstm.weight_ih_l0, lstm.weight_hh_l0, bias, h[0], c[0])
        torch.testing.assert_close(new_h[0], h)
        torch.testing.assert_close(new_c[0], c)
    torch.testing.assert_close(output.raw, hidden)
    torch.testing.assert_close(output.dropped, hidden)
    logits = hidden @ network.embedding.weight.T + network.decoder.bias
    torch.testing.assert_close(output.logits, logits)


def test_carried_states_make_one_sequence_of_two():
    network = small().eval()
    whole = network(words())
    first = network(words()[:5])
    second = network(words()[5:], first.states)
    torch.testing.assert_close(torch.cat([first.logits, second.logits]), whole.logits)
    torch.testing.assert_close(second.states, whole.states)


def test_the_output_layer_has_the_embeddings_weight():
    network = small()
    assert network.decoder.weight is network.embedding.weight
    assert [name for name, _ in network.named_parameters() if "decoder" in name] == ["decoder.bias"]


def test_it_starts_from_the_published_initialisation():
    network = small(vocab_size=2000)
    weight = network.embedding.weight
    assert weight.abs().max() <= 0.1
    assert weight.std().item() == pytest.approx(0.2 / 12**0.5, rel=0.02)
    assert not network.decoder.bias.any()


@pytest.mark.parametrize("num_layers", [1, 2, 3])
def test_every_recurrent_weight_gets_a_gradient_and_moves(num_layers):
    # In the code published with the paper they stay as they were drawn.
    network = small(num_layers)
    optimizer = Aida(network.parameters(), lr=1e-2, eps=1e-16)
    before = [lstm.weight_hh_l0.detach().clone() for lstm in network.lstms]
    for _ in range(3):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(network(words()).logits.flatten(0, 1), words().flatten())
        loss.backward()
        optimizer.step()
    for lstm, old in zip(network.lstms, before, strict=True):
        assert lstm.weight_hh_l0.is_leaf
        assert lstm.weight_hh_l0.grad.count_nonzero() > 0
        assert (lstm.weight_hh_l0 - old).abs().mean() > 1e-3


def test_every_parameter_gets_a_gradient():
    network = small(3)
    network(words()).logits.logsumexp(-1).sum().backward()
    assert [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_a_dropped_recurrent_weight_is_used_for_the_whole_sequence_and_gets_no_gradient():
    torch.manual_seed(3)
    lstm = WeightDropLSTM(3, 5, weight_dropout=0.5).double()
    inputs = torch.randn(7, 2, 3).double()
    torch.manual_seed(4)
    output, _ = lstm(inputs)
    torch.manual_seed(4)
    mask = nn.functional.dropout(torch.ones(20, 5).double(), 0.5)
    assert 30 < mask.count_nonzero() < 70
    bias = lstm.bias_ih_l0 + lstm.bias_hh_l0
    zeros = torch.zeros(2, 5).double()
    expected, _, _ = naive_lstm(
        inputs, lstm.weight_ih_l0, lstm.weight_hh_l0 * mask, bias, zeros, zeros
    )
    torch.testing.assert_close(output, expected)
    output.square().sum().backward()
    assert torch.equal(lstm.weight_hh_l0.grad != 0, mask != 0)


def test_weights_are_dropped_anew_in_each_call_and_only_in_training():
    lstm = WeightDropLSTM(3, 5, weight_dropout=0.5)
    inputs = torch.randn(7, 2, 3)
    assert not torch.equal(lstm(inputs)[0], lstm(inputs)[0])
    lstm.eval()
    assert torch.equal(lstm(inputs)[0], lstm(inputs)[0])
    plain = nn.LSTM(3, 5)
    plain.load_state_dict(lstm.state_dict())
    torch.testing.assert_close(lstm(inputs)[0], plain(inputs)[0])


def test_an_lstms_wrong_input_is_refused():
    lstm = WeightDropLSTM(3, 5, weight_dropout=0.5)
    with pytest.raises(RuntimeError, match=r"Expected 3, got 4"):
        lstm(torch.zeros(7, 2, 4))
    state = torch.zeros(1, 9, 5)
    with pytest.raises(RuntimeError, match=r"Expected hidden\[0\] size \(1, 2, 5\)"):
        lstm(torch.zeros(7, 2, 3), (state, state))


@pytest.mark.parametrize("p", [0.1, 0.4])
def test_locked_dropout_has_one_mask_for_all_time_steps(p):
    torch.manual_seed(0)
    dropped = locked_dropout(torch.ones(6, 100, 100), p)
    assert torch.equal(dropped, dropped[:1].expand_as(dropped))
    assert dropped.unique().tolist() == pytest.approx([0, 1 / (1 - p)])
    share = (dropped[0] == 0).float()
    assert share.mean().item() == pytest.approx(p, abs=4 * (p * (1 - p) / 10_000) ** 0.5)
    # Streams and features have masks of their own.
    assert share.mean(0).std() > 0
    assert share.mean(1).std() > 0


def test_locked_dropout_does_nothing_in_evaluation():
    inputs = torch.randn(3, 4, 5)
    assert locked_dropout(inputs, 0.5, training=False) is inputs


def test_dropping_a_word_drops_it_wherever_it_stands():
    network = small(vocab_size=1000, **{**NONE, "word_dropout": 0.1})
    tokens = torch.randint(1000, (200, 100))
    torch.manual_seed(5)
    with torch.no_grad():
        ratio = network._embed(tokens) / network.embedding.weight[tokens]
    kept = {word: ratio[tokens == word] for word in range(1000)}
    for values in kept.values():
        assert values.min().item() == pytest.approx(values.max().item(), rel=1e-5)
    means = torch.tensor([values.mean() for values in kept.values()])
    assert (means == 0).float().mean().item() == pytest.approx(0.1, abs=0.04)
    torch.testing.assert_close(means[means != 0], torch.full_like(means[means != 0], 1 / 0.9))


def test_the_output_layer_loses_no_words():
    network = small(**{**NONE, "word_dropout": 0.5})
    network.decoder.bias.data.zero_()
    assert (network(words()).logits != 0).all()


@pytest.mark.parametrize(
    ("name", "place"), [("input_dropout", "first"), ("hidden_dropout", "second")]
)
def test_a_dropout_acts_on_its_layers_input(name, place):
    network = small(**{**NONE, name: 0.5})
    inputs = []
    for lstm in network.lstms:
        lstm.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    network(words())
    dropped = [bool((x == 0).any()) for x in inputs]
    assert dropped == [place == "first", place == "second"]
    masked = inputs[dropped.index(True)]
    assert torch.equal((masked == 0).all(dim=0), (masked == 0).any(dim=0))


def test_the_output_dropout_leaves_the_raw_output_alone():
    output = small(**{**NONE, "output_dropout": 0.5})(words())
    kept = output.dropped != 0
    assert (output.raw != 0).all()
    assert 0.2 < kept.float().mean() < 0.8
    torch.testing.assert_close(output.dropped[kept], 2 * output.raw[kept])


def test_states_for_other_layers_are_refused():
    network = small()
    states = network(words()).states
    with pytest.raises(ValueError, match="Expected 2 states, one per layer, got 1"):
        network(words(), states[:1])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"num_layers": 0}, "Invalid num_layers value: 0, it must be at least 1"),
        ({"vocab_size": 0}, "Invalid vocab_size value: 0"),
        ({"weight_dropout": 1.0}, r"Invalid weight_dropout value: 1.0, it must be in \[0, 1\)"),
        ({"input_dropout": -0.1}, "Invalid input_dropout value: -0.1"),
    ],
)
def test_a_bad_argument_is_refused_with_what_is_allowed(options, said):
    with pytest.raises(ValueError, match=said):
        AWDLSTM(**options)
