"""Captions as conditions: words and their parts, what a lost caption is, attention over pixels and words, and every network that reads them."""

from __future__ import annotations

import zlib
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pixelkiln.core.recipe import DataConfig
from pixelkiln.core.types import Ability, Batch, Condition, DataInfo, ImageShape, Moment, Request, UserError
from pixelkiln.data import open_source
from pixelkiln.engine.sample import in_turn
from pixelkiln.layers.attention import SelfAttention2d, attend, beside
from pixelkiln.methods.ddpm import DDPM, DDPMConfig
from pixelkiln.methods.flow import Flow, FlowConfig
from pixelkiln.nets.backbone import NetConfig, backbone
from pixelkiln.nets.conditioning import Conditioner
from pixelkiln.nets.dit import DiTConfig
from pixelkiln.nets.mlp import MLPConfig
from pixelkiln.nets.mpunet import MPUNetConfig
from pixelkiln.nets.text import BUCKETS, TextEncoder, parts_of, words_of
from pixelkiln.nets.unet import UNetConfig

NETS = {
    "unet": UNetConfig(width=8, mults=(1, 2), blocks=1, attention=(1,)),
    "mpunet": MPUNetConfig(width=8, mults=(1, 2), blocks=1, attention=(1,)),
    "dit": DiTConfig(width=16, depth=2, heads=2),
    "mlp": MLPConfig(width=16, depth=2),
}
INFO = DataInfo(ImageShape(3, 8, 8), ("a", "b"), ("a red circle", "a blue square"))


def encoder(dim: int = 16, words: int = 6) -> TextEncoder:
    torch.manual_seed(0)
    return TextEncoder(dim, words).eval()


def test_words_and_their_parts() -> None:
    assert words_of("A red-ish Café, 2 cats!", 20) == ["a", "red", "-", "ish", "café", ",", "2", "cats", "!"]
    assert words_of("one two three", 2) == ["one", "two"]
    assert words_of(" \n", 5) == []
    runs = ["<ca", "cat", "at>", "<cat", "cat>", "<cat>"]  # Bojanowski et al. 2017, section 3.2, written out
    assert set(parts_of("cat")) == {zlib.crc32(run.encode()) % BUCKETS for run in runs}
    assert parts_of("a") == tuple({zlib.crc32(b"<a>") % BUCKETS})
    assert set(parts_of("cats")) & set(parts_of("cat"))  # what was never seen resembles its relatives


def test_a_word_is_the_mean_of_its_parts() -> None:
    net = encoder()
    seen: list[Tensor] = []
    net.blocks[0].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    net(["cat dog", ""])
    table = net.table.weight
    for i, word in enumerate(("cat", "dog")):
        torch.testing.assert_close(seen[0][0, 1 + i], table[list(parts_of(word))].mean(0) + net.positions[i])
    torch.testing.assert_close(seen[0][1, 0], net.start)


def test_words_that_are_not_there_change_nothing() -> None:
    short, long = encoder(words=3), encoder(words=9)
    long.load_state_dict(short.state_dict() | {"positions": torch.cat([short.positions, torch.randn(6, 16)])})
    texts = ["a red circle", "cat", ""]
    (a, there), whole = short(texts)
    (b, also), same = long(texts)
    torch.testing.assert_close(whole, same)
    torch.testing.assert_close(a[there], b[also])
    assert there.sum(1).tolist() == also.sum(1).tolist() == [4, 2, 1]
    assert not torch.allclose(whole[0], whole[1], atol=1e-2)


def test_a_lost_caption_is_an_empty_one_and_loses_all_of_its_words_together() -> None:
    net = encoder()
    texts = ["a red circle", "cat", "dog"]
    (tokens, there), whole = net(texts, torch.tensor([True, False, True]))
    (empty, none), null = net(["", "cat", ""])
    assert torch.equal(there, none)
    torch.testing.assert_close(whole, null)
    torch.testing.assert_close(tokens[there], empty[none])
    torch.manual_seed(0)
    reading = Conditioner(3, 8, 0.5, words=4).train()
    n = 400
    seen = reading(Condition(label=torch.arange(n) % 3, text=("two words",) * n), n)
    gone = ~seen.words.there[:, 1]
    assert torch.equal(gone, ~seen.words.there[:, 2])
    assert float(gone.float().mean()) == pytest.approx(0.5, abs=0.1)
    alone = reading.eval()(Condition(), 1).vec  # label and caption go together
    torch.testing.assert_close(seen.vec[gone], alone.expand(int(gone.sum()), -1))


def test_attention_with_words_is_one_softmax_over_pixels_and_those_words_that_are_there() -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 2, 5, 4).double()  # (B, heads, N, d) each
    kv, there = torch.randn(2, 3, 16).double(), torch.tensor([[True, True, False], [True, False, False]])
    found = attend(q, *beside(k, v, kv, there))
    for row, count in enumerate((2, 1)):  # by torch, without the absent ones
        extra = kv[row, :count].view(count, 2, 2, 4).permute(1, 2, 0, 3)
        want = F.scaled_dot_product_attention(q[row], torch.cat([k[row], extra[0]], 1), torch.cat([v[row], extra[1]], 1))
        torch.testing.assert_close(found[row], want)
    assert SelfAttention2d(8).read is None


@pytest.mark.parametrize("name", NETS)
def test_every_network_reads(name: str) -> None:
    torch.manual_seed(0)
    config: NetConfig = NETS[name]  # type: ignore[assignment]
    net = backbone(INFO.shape, 16, config, words=True).eval()
    for weight in net.parameters():  # nothing starts at zero
        nn.init.normal_(weight, std=0.3)
    condition = Conditioner(0, 16, 0.1, words=5).eval()
    x, t = torch.randn(3, 3, 8, 8), torch.rand(3)

    def out(*texts: str) -> Tensor:
        result: Tensor = net(x, t, condition(Condition(text=texts), 3))
        return result

    red = out("a red circle", "blue", "")
    assert red.shape == x.shape
    other = out("a green circle", "blue", "")
    assert (red[0] - other[0]).abs().max() > 1e-4
    torch.testing.assert_close(red[1:], other[1:], atol=1e-4, rtol=1e-4)  # each row has its own
    plain: Tensor = net(x, t, condition(Condition(), 3))
    torch.testing.assert_close(red[2], plain[2], atol=1e-4, rtol=1e-4)  # no caption is an empty one


def test_a_model_that_reads_captions_takes_text_in_place_of_labels() -> None:
    config = FlowConfig(UNetConfig(width=8, mults=(1,), blocks=1, attention=(0,)), dim=16, captions=4)
    method = Flow(INFO, config).eval()
    assert Ability.TEXT in method.abilities
    assert {Ability.LABEL} & method.abilities == set()
    images = method.sample(Request((1, 2), Condition(text=("a red circle", "a blue square")), steps=2))
    assert images.shape == (2, 3, 8, 8)
    with pytest.raises(UserError, match="label"):
        method.sample(Request((1,), Condition(label=torch.tensor([0]))))
    with pytest.raises(UserError, match="the data have none"):
        Flow(DataInfo(INFO.shape, ("a", "b")), config)
    plain = Flow(INFO, FlowConfig(config.net, dim=16))
    assert Ability.TEXT not in plain.abilities
    assert Ability.LABEL in plain.abilities


def test_captions_are_told_to_methods_asked_in_turn_and_part_of_the_digest() -> None:
    data = open_source("shapes", DataConfig(resolution=16))
    assert data.texts is not None
    info = data.info
    assert len(info.texts) == 256
    assert set(info.texts) <= set(data.texts)
    method = Flow(info, FlowConfig(UNetConfig(width=8, mults=(1,), blocks=1, attention=(0,)), dim=16, captions=8))
    assert in_turn(method, 300).text == (info.texts * 2)[:300]
    told = replace(data, texts=("other", *data.texts[1:]))
    assert told.digest() != data.digest()
    assert replace(data, texts=None).digest() != data.digest()


def test_every_time_gets_the_same_weight_with_balance() -> None:
    torch.manual_seed(0)
    config = DDPMConfig(UNetConfig(width=8, mults=(1,), blocks=1, attention=()), dim=16, balance=True)
    method = DDPM(INFO, config).train()
    assert "bins" in method.updates()[0].nets
    x, label = torch.randn(64, 3, 8, 8).clamp(-1, 1), torch.arange(64) % 2
    for step in range(40):
        terms = method.loss(Batch(x, Condition(label=label)), Moment(step, 40, 64 * step))
    assert float(terms["loss"].detach()) == pytest.approx(1.0, abs=0.1)  # each loss over the mean of its time's
    assert float(terms["error"]) != pytest.approx(1.0, abs=0.01)
