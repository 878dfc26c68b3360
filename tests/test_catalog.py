"""The heart: every recipe of the catalog, at size tiny, keeps the contract of the house."""

from __future__ import annotations

import inspect
import json
import re
from dataclasses import fields, replace

import pytest
import torch

from pixelkiln.core.catalog import builtin, find, overridable, override, stages_from_json, stages_to_json
from pixelkiln.core.protocols import Classifier, Codec, Latent, Method, Tokenizer, Update
from pixelkiln.core.recipe import Recipe
from pixelkiln.core.types import Ability, Condition, DataInfo, Moment, Request, UserError
from pixelkiln.data import Feed, open_source
from pixelkiln.engine.build import make
from pixelkiln.engine.loop import Trainer, only
from pixelkiln.engine.where import Where

WHERE = Where("cpu", "fp32", False, torch.get_num_threads())
STEPS = 4
NAMES = list(builtin())


def built(name: str, seed: int = 0, where: Where = WHERE) -> tuple[Recipe, Method, Feed]:
    """The recipe at size tiny on real digits; parents are themselves tiny and untrained."""
    recipe = builtin()[name]("tiny")
    stage = recipe.last
    data = open_source("digits", stage.data, "train")
    parents: dict[str, Method] = {}
    for role, protocol in stage.method.roles.items():
        base = builtin()[{Classifier: "classifier", Codec: "vae", Latent: "dcgan", Tokenizer: "vqvae"}.get(protocol, "ddpm")]("tiny").last
        parents[role] = make(base, DataInfo(data.info.shape, data.classes), {}, 1)
    method = make(stage, data.info, parents, seed)
    where.place(method)
    return recipe, method, Feed(data, stage.train.batch, stage.data, seed, where.device, where.layout == "channels-last")


def trainer(name: str, total: int = STEPS, where: Where = WHERE) -> Trainer:
    recipe, method, feed = built(name, where=where)
    made = Trainer(method, recipe.last.train, feed.batch, 0, total, where)
    if made.fits:
        made.fit(feed.passes)
    return made


def request(method: Method, num: int) -> Request:
    """An order that fills every field that the method needs."""
    seeds = tuple(range(num))
    gen = torch.Generator().manual_seed(3)
    label = torch.arange(num) % len(method.info.classes) if Ability.LABEL in method.abilities else None
    source = torch.rand(num, *method.shape, generator=gen) * 2 - 1 if Ability.SOURCE in method.abilities else None
    mask = (torch.rand(num, 1, *tuple(method.shape)[1:], generator=gen) < 0.5).float() if Ability.MASK in method.abilities else None
    return Request(seeds, Condition(label=label, source=source, mask=mask), steps=3 if Ability.STEPS in method.abilities else None)


def snapshot(method: Method) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in method.state_dict().items()}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", ["tiny", "small", "base"])
def test_config_survives_json(name: str, size: str) -> None:
    recipe = builtin()[name](size)
    text = json.dumps(stages_to_json(recipe.stages))
    assert stages_from_json(builtin()[name](size), json.loads(text), "here") == recipe


@pytest.mark.parametrize("name", NAMES)
def test_names_its_paper_in_the_file_and_the_recipe(name: str) -> None:
    recipe = builtin()[name]("tiny")
    number = re.search(r"arXiv (\d{4}\.\d{4,5}|[a-z-]+/\d+)|(19|20)\d\d", recipe.paper)
    assert number, recipe.paper
    assert number[0].removeprefix("arXiv ") in (inspect.getmodule(recipe.last.method).__doc__ or "")
    assert recipe.summary
    assert recipe.family


@pytest.mark.parametrize("name", NAMES)
def test_each_update_changes_exactly_its_nets_and_losses_are_finite(name: str) -> None:
    t = trainer(name)
    for row in t.rows:
        before = snapshot(t.method)
        for k in range(3):  # layers that start at zero let gradients through from the second or third step on
            terms = t._update(row, [t.draw(k)], Moment(k, STEPS, 0))
        assert all(torch.isfinite(v).all() for v in terms.values()), terms
        changed = {k.split(".")[0] for k, v in t.method.state_dict().items() if not torch.equal(v, before[k])}
        assert changed == set(row.nets), f"row {row.name} declares {row.nets}"


@pytest.mark.parametrize("name", NAMES)
def test_no_row_builds_a_graph_into_a_net_that_it_does_not_train(name: str) -> None:
    """A forgotten detach: with the engine's freezing undone, the undeclared nets still get no gradient where the row needs none."""
    t = trainer(name)
    for row in t.rows:
        with only(t.method, row.nets):
            loss = row.loss(t.draw(0), Moment(0, STEPS, 0))["loss"]
        assert loss.ndim == 0
        reached = torch.autograd.grad(loss, [p for n in row.nets for p in getattr(t.method, n).parameters()], allow_unused=True)
        assert any(g is not None and bool(g.abs().sum() > 0) for g in reached)


@pytest.mark.parametrize("name", NAMES)
def test_resumed_training_equals_unbroken_training_bit_for_bit(name: str) -> None:
    whole = trainer(name)
    for k in range(STEPS if whole.rows else 0):
        whole.step(k)
    first = trainer(name)
    for k in range(2 if first.rows else 0):
        first.step(k)
    groups = {g: {k: v.clone(memory_format=torch.contiguous_format) for k, v in t.items()} for g, t in first.groups().items()}
    recipe, method, feed = built(name, seed=0)
    with torch.no_grad():
        for p in method.parameters():
            p.add_(1.0)  # nothing may be left over from the fresh weights
    second = Trainer(method, recipe.last.train, feed.batch, 0, STEPS, WHERE)
    second.restore(lambda g: groups[g], first.seen())
    torch.rand(7)  # a random number drawn by somebody else must change nothing
    for k in range(2, STEPS if second.rows else 2):
        second.step(k)
    a, b = whole.groups(), second.groups()
    for group in a:
        assert a[group].keys() == b[group].keys()
        for key in a[group]:
            assert torch.equal(a[group][key], b[group][key]), f"{group}: {key}"
    assert whole.look() == second.look() if whole.rows else True


@pytest.mark.parametrize("name", NAMES)
def test_samples_depend_on_their_seed_alone(name: str) -> None:
    t = trainer(name)
    for k in range(2 if t.rows else 0):
        t.step(k)
    full = request(t.method, 5)
    if not t.method.generates:
        with pytest.raises(UserError, match=r"does not generate: give it as --parent \w+=RUN"):
            t.method.sample(full)
        return
    whole = t.method.sample(full)
    assert whole.shape == (5, *t.method.shape)
    assert torch.isfinite(whole).all()
    assert whole.abs().max() <= 1
    torch.manual_seed(99)
    split = torch.cat([t.method.sample(full.take(slice(i, j))) for i, j in ((0, 2), (2, 3), (3, 5))])
    torch.testing.assert_close(split, whole, atol=2e-4, rtol=0)
    assert not torch.equal(whole[0], whole[1])


@pytest.mark.parametrize("name", NAMES)
def test_a_field_without_ability_is_refused(name: str) -> None:
    _, method, _ = built(name)
    if not method.generates:
        pytest.skip("generates nothing")
    ask = {"steps": 3, "solver": "ddim", "spacing": "karras", "levels": (0.01, 50.0), "eta": 0.5, "churn": 1.0, "guidance": 2.0, "interval": (0.1, 1.0), "rescale": 0.5,
           "threshold": 0.9, "strength": 0.5, "truncation": 0.7, "temperature": 0.9, "top_k": 5, "top_p": 0.9}
    assert {*ask} == {f.name for f in fields(Request)} - {"seeds", "cond", "callback"}
    for field, value in ask.items():
        if Ability(field) not in method.abilities:
            with pytest.raises(UserError, match=field):
                method.sample(Request((0,), **{field: value}))
    if Ability.TEXT not in method.abilities:
        with pytest.raises(UserError, match="text"):
            method.sample(Request((0,), Condition(text=("a dog",))))


@pytest.mark.parametrize("name", NAMES)
def test_sampling_leaves_the_method_and_the_global_randomness_alone(name: str) -> None:
    t = trainer(name)
    t.method.train()
    before, state = snapshot(t.method), torch.get_rng_state()
    if t.method.generates:
        t.method.sample(request(t.method, 2))
    assert t.method.training
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(v, before[k]) for k, v in t.method.state_dict().items())


@pytest.mark.parametrize("name", NAMES)
def test_accumulated_gradients_equal_the_whole_batch(name: str) -> None:
    """Two halves give the same number of optimiser steps and finite terms (their randomness differs, so not the same numbers)."""
    recipe, method, feed = built(name)
    config = replace(recipe.last.train, accumulate=2)
    t = Trainer(method, config, feed.batch, 0, STEPS, WHERE)
    if not t.rows:
        pytest.skip("nothing to train in steps")
    t.step(0)
    assert all(torch.isfinite(torch.tensor(v)) for v in t.look().values())
    for name, opt in t.opts.items():
        for p in t.owned[name]:
            nets = {net for net, child in method.named_children() if any(p is q for q in child.parameters())}
            taken = sum(row.repeat for row in t.rows if row.opt == name and nets & set(row.nets))
            assert taken >= 1
            state = opt.state[p]  # Muon does not count the steps of a matrix
            assert "momentum_buffer" in state or int(state["step"]) == taken, "one step a turn, however many parts"


@pytest.mark.parametrize("name", NAMES)
def test_every_option_of_the_recipe_can_be_set_from_its_own_text(name: str) -> None:
    recipe = builtin()[name]("tiny")
    for option, leaf in overridable(recipe):
        text = "none" if leaf.value is None else ",".join(map(str, leaf.value)) if isinstance(leaf.value, tuple) else str(leaf.value)
        assert override(recipe, {option: text}) == recipe


def test_unknown_names_get_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean ddpm"):
        find("dppm")
    with pytest.raises(UserError, match=r"did you mean .*model\.net\.width"):
        override(find("ddpm")("tiny"), {"model.net.widht": "3"})
    with pytest.raises(UserError, match="not a whole number"):
        override(find("ddpm")("tiny"), {"model.net.width": "wide"})


def test_updates_that_share_an_optimiser_share_its_moments() -> None:
    t = trainer("dcgan")
    assert set(t.opts) == {"d", "g"}
    assert isinstance(t.rows[0], Update)
    parameters = [p for ps in t.owned.values() for p in ps]
    assert len({id(p) for p in parameters}) == len(parameters), "no parameter belongs to two optimisers"
