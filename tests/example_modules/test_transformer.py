import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm

from aida_lightning.example_modules import Transformer

VOCAB, D_MODEL, HEADS, FEEDFORWARD = 23, 16, 4, 40


def transformer(**options) -> Transformer:
    torch.manual_seed(0)
    model = Transformer(VOCAB, D_MODEL, HEADS, 2, 3, FEEDFORWARD, **options).double().eval()
    for parameter in model.parameters():  # what starts at 0 or 1 could hide a fault
        nn.init.normal_(parameter, std=0.4)
    return model


def sentences(*lengths: int, width: int) -> Tensor:
    """Random words 1 … 22, and then 0."""
    words = torch.randint(
        1, VOCAB, (len(lengths), width), generator=torch.Generator().manual_seed(1)
    )
    return words * (torch.arange(width) < torch.tensor(lengths)[:, None])


@pytest.fixture
def pair() -> tuple[Tensor, Tensor]:
    return sentences(7, 4, 1, width=7), sentences(3, 6, 2, width=6)


def parameter_count(vocab: int, d: int, encoder: int, decoder: int, ff: int) -> int:
    attention, norm, feedforward = 4 * d * d, 2 * d, 2 * d * ff + ff + d
    encoder_layer = attention + feedforward + 2 * norm
    decoder_layer = 2 * attention + feedforward + 3 * norm
    return vocab * d + 2 * norm + encoder * encoder_layer + decoder * decoder_layer


@pytest.mark.parametrize(
    ("vocab", "d", "heads", "encoder", "decoder", "ff"),
    [(9521, 512, 8, 6, 6, 2048), (100, 12, 3, 1, 4, 50)],
)
def test_the_parameter_count_is_that_of_one_matrix_of_words_and_the_layers(
    vocab, d, heads, encoder, decoder, ff
):
    with torch.device("meta"):
        model = Transformer(vocab, d, heads, encoder, decoder, ff)
    count = sum(p.numel() for p in model.parameters())
    assert count == parameter_count(vocab, d, encoder, decoder, ff)


def test_the_papers_network_has_49_million_parameters():
    with torch.device("meta"):
        count = sum(p.numel() for p in Transformer(9521).parameters())
    assert count == 48_978_432


def test_the_attention_has_four_matrices_and_no_bias():
    names = [name for name, _ in transformer().named_parameters() if "attention." in name]
    assert {name.split("attention.")[1] for name in names} == {
        *("query.weight", "key.weight", "value.weight", "output.weight")
    }
    assert len(names) == 4 * (2 + 2 * 3)


def naive_positions(length: int) -> Tensor:
    table = torch.empty(length, D_MODEL, dtype=torch.float64)
    for position in range(length):
        for i in range(0, D_MODEL, 2):
            angle = position / 10_000 ** (i / D_MODEL)
            table[position, i], table[position, i + 1] = math.sin(angle), math.cos(angle)
    return table


def test_positions_are_sines_and_cosines_of_falling_rates():
    positions = Transformer(VOCAB, D_MODEL, HEADS, 1, 1, 8).positions.double()
    torch.testing.assert_close(positions, naive_positions(200), rtol=0, atol=1e-7)


def naive_attention(attention: nn.Module, x: Tensor, memory: Tensor, visible: Tensor) -> Tensor:
    """One sentence, one query and one head at a time; ``visible[i, j]``: query i sees key j."""
    width = D_MODEL // HEADS
    out = torch.zeros_like(x)
    for head in range(HEADS):
        rows = slice(head * width, (head + 1) * width)
        query = attention.query.weight[rows]
        key, value = attention.key.weight[rows], attention.value.weight[rows]
        for i in range(len(x)):
            keys = [j for j in range(len(memory)) if visible[i, j]]
            scores = [(query @ x[i]) @ (key @ memory[j]) / math.sqrt(width) for j in keys]
            total = sum(score.exp() for score in scores)
            attended = sum(
                score.exp() / total * (value @ memory[j])
                for score, j in zip(scores, keys, strict=True)
            )
            out[i] += attention.output.weight[:, rows] @ attended
    return out


def naive_norm(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    variance = centred.square().mean(-1, keepdim=True)
    return centred / (variance + 1e-6).sqrt() * norm.weight + norm.bias


def naive_feedforward(feedforward: nn.Sequential, x: Tensor) -> Tensor:
    first, _, second = feedforward
    return (x @ first.weight.T + first.bias).clamp(min=0) @ second.weight.T + second.bias


def naive_logits(model: Transformer, source: Tensor, target: Tensor) -> Tensor:
    """The logits of one sentence without padding."""
    everything = torch.ones(len(target), len(source))
    causal = torch.ones(len(target), len(target)).tril()
    x = naive_norm(
        model.encoder_norm, model.embedding.weight[source] + naive_positions(len(source))
    )
    for layer in model.encoder:
        all_see_all = torch.ones(len(source), len(source))
        attended = naive_attention(layer.attention, x, x, all_see_all)
        x = naive_norm(layer.attention_norm, x + attended)
        x = naive_norm(layer.feedforward_norm, x + naive_feedforward(layer.feedforward, x))
    memory = x
    x = naive_norm(
        model.decoder_norm, model.embedding.weight[target] + naive_positions(len(target))
    )
    for layer in model.decoder:
        attended = naive_attention(layer.attention, x, x, causal)
        x = naive_norm(layer.attention_norm, x + attended)
        attended = naive_attention(layer.cross_attention, x, memory, everything)
        x = naive_norm(layer.cross_attention_norm, x + attended)
        x = naive_norm(layer.feedforward_norm, x + naive_feedforward(layer.feedforward, x))
    return x @ model.embedding.weight.T * D_MODEL**-0.5


def test_logits_are_those_of_a_naive_transcription_sentence_by_sentence(pair):
    model = transformer()
    model.positions = naive_positions(200)
    with torch.no_grad():
        logits = model(*pair)
        assert logits.shape == (3, 6, VOCAB)
        for row, source, target in zip(logits, *pair, strict=True):
            source, target = source[source != 0], target[target != 0]
            expected = naive_logits(model, source, target)
            torch.testing.assert_close(row[: len(target)], expected, rtol=1e-10, atol=1e-10)


def in_torch(model: Transformer) -> tuple[nn.TransformerEncoder, nn.TransformerDecoder]:
    """The layers in torch's own classes, whose attention keeps biases of 0."""
    options = {"dropout": 0.0, "layer_norm_eps": 1e-6, "batch_first": True, "dtype": torch.float64}
    shape = (D_MODEL, HEADS, FEEDFORWARD)
    encoder = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(*shape, **options), 2, enable_nested_tensor=False
    )
    decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(*shape, **options), 3)

    def copy(ours: nn.Module, theirs: nn.Module, norms: list[str]) -> None:
        for name, attention in (("attention", "self_attn"), ("cross_attention", "multihead_attn")):
            if hasattr(ours, name):
                mine, other = getattr(ours, name), getattr(theirs, attention)
                packed = [mine.query.weight, mine.key.weight, mine.value.weight]
                other.in_proj_weight.copy_(torch.cat(packed))
                other.out_proj.weight.copy_(mine.output.weight)
                assert not other.in_proj_bias.any()
                assert not other.out_proj.bias.any()
        theirs.linear1.load_state_dict(ours.feedforward[0].state_dict())
        theirs.linear2.load_state_dict(ours.feedforward[2].state_dict())
        for i, name in enumerate(norms, start=1):
            getattr(theirs, f"norm{i}").load_state_dict(getattr(ours, name).state_dict())

    with torch.no_grad():
        for ours, theirs in zip(model.encoder, encoder.layers, strict=True):
            copy(ours, theirs, ["attention_norm", "feedforward_norm"])
        for ours, theirs in zip(model.decoder, decoder.layers, strict=True):
            copy(ours, theirs, ["attention_norm", "cross_attention_norm", "feedforward_norm"])
    return encoder, decoder


def test_logits_and_gradients_are_those_of_torchs_layers(pair):
    model = transformer(dropout=0.0).train()
    encoder, decoder = in_torch(model)
    source, target = pair
    words = model.embedding.weight

    def embed(sentence: Tensor, norm: nn.LayerNorm) -> Tensor:
        return norm(words[sentence] + model.positions[: sentence.shape[1]])

    padding = source == 0
    memory = encoder(embed(source, model.encoder_norm), src_key_padding_mask=padding)
    output = decoder(
        embed(target, model.decoder_norm),
        memory,
        tgt_mask=nn.Transformer.generate_square_subsequent_mask(6).isinf(),
        memory_key_padding_mask=padding,
        tgt_is_causal=True,
    )
    expected = (output @ words.T / 4)[target != 0]
    logits = model(source, target)[target != 0]
    torch.testing.assert_close(logits, expected, rtol=1e-10, atol=1e-10)
    weights = torch.randn(logits.shape, dtype=torch.float64)
    (theirs,) = torch.autograd.grad((expected * weights).sum(), words)
    (ours,) = torch.autograd.grad((logits * weights).sum(), words)
    torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-8)


def test_a_position_depends_on_the_targets_up_to_it_and_on_no_later_one(pair):
    model = transformer()
    source, target = pair
    with torch.no_grad():
        before = model(source, target)[1]
        for i in range(6):
            changed = target.clone()
            changed[1, i] = changed[1, i] % (VOCAB - 1) + 1
            differs = (model(source, changed)[1] != before).any(dim=-1)
            assert differs.tolist() == [j >= i for j in range(6)]


def test_every_source_word_is_seen_from_every_position(pair):
    model = transformer()
    source, target = pair
    with torch.no_grad():
        before = model(source, target)[0]
        for i in range(7):
            changed = source.clone()
            changed[0, i] = changed[0, i] % (VOCAB - 1) + 1
            assert (model(changed, target)[0] != before).any(dim=-1).all()


def test_more_padding_changes_nothing(pair):
    model = transformer()
    source, target = pair
    wide = [torch.cat([words, words.new_zeros(3, 5)], dim=1) for words in pair]
    with torch.no_grad():
        expected, padded = model(source, target), model(*wide)[:, :6]
    is_word = target != 0
    torch.testing.assert_close(padded[is_word], expected[is_word], rtol=1e-12, atol=1e-12)


def test_the_embedding_of_padding_is_seen_by_no_word(pair):
    model = transformer()
    is_word = pair[1] != 0
    with torch.no_grad():
        before = model(*pair)[is_word]
        model.embedding.weight[0] += 1
        after = model(*pair)[is_word]
    # Only the output layer, which is the same matrix, has a use for it: its logit of padding.
    torch.testing.assert_close(after[:, 1:], before[:, 1:], rtol=1e-12, atol=1e-12)
    assert not torch.equal(after[:, 0], before[:, 0])


def test_another_pad_index_can_be_chosen():
    model = transformer(pad_index=5)
    source, target = torch.tensor([[1, 0, 2, 5, 5]]), torch.tensor([[3, 4]])
    with torch.no_grad():
        torch.testing.assert_close(model(source, target), model(source[:, :3], target))


def test_dropout_is_off_in_evaluation_and_on_in_training(pair):
    model = transformer(dropout=0.3)
    assert torch.equal(model(*pair), model(*pair))
    model.train()
    assert not torch.equal(model(*pair), model(*pair))


def test_a_layer_drops_what_its_blocks_add_and_nothing_else():
    model = transformer(dropout=1.0).train()
    x = torch.randn(3, 6, D_MODEL, dtype=torch.float64)
    for layer, arguments in (
        (model.encoder[0], (torch.ones(3, 1, 1, 6, dtype=torch.bool),)),
        (model.decoder[0], (x, torch.ones(3, 1, 1, 6, dtype=torch.bool))),
    ):
        norms = [module for module in layer.children() if isinstance(module, nn.LayerNorm)]
        expected = x
        for norm in norms:
            expected = norm(expected)
        torch.testing.assert_close(layer(x, *arguments), expected)


def test_dropout_acts_on_the_attentions_weights_and_not_within_the_feedforward():
    layer = transformer(dropout=1.0).train().encoder[0]
    layer.dropout.p = 0.0
    x = torch.randn(3, 6, D_MODEL, dtype=torch.float64)
    without_attention = layer.attention_norm(x)
    expected = layer.feedforward_norm(without_attention + layer.feedforward(without_attention))
    torch.testing.assert_close(layer(x, torch.ones(3, 1, 1, 6, dtype=torch.bool)), expected)


def test_the_embeddings_are_normalised_after_dropout():
    model = transformer(dropout=1.0).train()
    source = sentences(3, width=3)
    embedded = model._embed(source, model.encoder_norm)
    torch.testing.assert_close(embedded, model.encoder_norm.bias.expand(1, 3, -1))
    model.eval()
    summed = model.embedding.weight[source] + model.positions[:3]
    norm = model.encoder_norm
    expected = layer_norm(summed, (D_MODEL,), norm.weight, norm.bias, eps=1e-6)
    torch.testing.assert_close(model._embed(source, norm), expected)


def test_matrices_start_uniform_within_xaviers_bound_and_gains_at_one():
    torch.manual_seed(0)
    model = Transformer(1000, 64, 8, 1, 1, 256)
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            bound = math.sqrt(6 / sum(parameter.shape))
            assert 0.98 * bound < parameter.abs().max() <= bound
            assert parameter.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)
        elif "norm" in name:
            assert (parameter == float(name.endswith("weight"))).all()


def test_positions_are_not_saved_and_not_trained():
    assert "positions" not in Transformer(VOCAB, D_MODEL, HEADS, 1, 1, 8).state_dict()


@pytest.mark.parametrize(("d_model", "nhead"), [(10, 4), (9, 3)])
def test_a_width_that_cannot_be_divided_is_refused(d_model, nhead):
    with pytest.raises(ValueError, match=f"value: {d_model}, .* multiple of nhead={nhead}"):
        Transformer(VOCAB, d_model, nhead)


def test_a_sentence_that_is_too_long_is_refused_with_its_length():
    model = transformer(max_length=6)
    with pytest.raises(ValueError, match=r"has 7 tokens, .* max_length=6"):
        model(sentences(7, width=7), sentences(2, width=2))
