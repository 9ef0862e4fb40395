# ruff: noqa: D103
"""A grown network is the trained one until training moves it, and every new weight can be moved."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from dataset import DataError
from grow import grown
from model import ModelConfig, build

SMALL = ModelConfig(d_model=8, mlp_hidden=8, blocks=("mamba", "mlp"), d_state=4)
LARGER = {
    "wider mamba": {"expand": 3},
    "wider mlp": {"mlp_hidden": 12},
    "deeper": {"blocks": ("mamba", "mlp", "mamba", "mlp")},
    "all": {"expand": 4, "mlp_hidden": 16, "blocks": ("mamba", "mlp", "mlp", "mamba")},
}


@pytest.fixture
def trained() -> torch.nn.Module:
    torch.manual_seed(3)
    network = build(SMALL)
    with torch.no_grad():
        for weight in network.parameters():
            weight += 0.1 * torch.randn_like(weight)
    return network


@pytest.mark.parametrize("kind", LARGER)
def test_a_grown_network_says_the_same_and_goes_on_saying_it(trained, kind) -> None:
    larger = grown(trained, SMALL, replace(SMALL, **LARGER[kind]))
    sound, before, after = 0.1 * torch.randn(2, 1600), None, None
    for part in sound.split(480, 1):
        expected, before = trained(part, before)
        found, after = larger(part, after)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert expected.abs().max() > 0.1


@pytest.mark.parametrize("kind", LARGER)
def test_training_reaches_every_weight_of_a_grown_network(trained, kind) -> None:
    larger = grown(trained, SMALL, replace(SMALL, **LARGER[kind]))
    optimiser = torch.optim.SGD(larger.parameters(), 0.1)
    first = {name: weight.detach().clone() for name, weight in larger.named_parameters()}
    for _ in range(3):  # what is read by a weight of zero moves only after that weight has
        optimiser.zero_grad()
        larger(0.3 * torch.randn(2, 3200))[0].square().sum().backward()
        optimiser.step()
    for name, weight in larger.named_parameters():
        assert (weight != first[name]).float().mean() > 0.9, name


@pytest.mark.parametrize(
    "change", [{"d_model": 16}, {"mlp_hidden": 4}, {"blocks": ("mlp", "mamba")}, {"blocks": ("mamba",)}]
)
def test_what_cannot_be_grown_is_refused(trained, change) -> None:
    with pytest.raises(DataError, match="only expand, mlp_hidden and blocks at the end"):
        grown(trained, SMALL, replace(SMALL, **change))
