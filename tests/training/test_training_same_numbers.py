"""The numbers of a plain PyTorch loop, on a network of the size that people train.

`make test-numbers` compares 200 steps, in minutes; here it is a few of them.
"""

from __future__ import annotations

import os

import pytest
import torch
from torch import nn

from heimdall_tracking.training import LocalizationNet, TorchLocalizationNet

STEPS = int(os.environ.get("HEIMDALL_TEST_STEPS", "4"))
ROWS = 8


def batches(kind: torch.dtype) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(5)
    inputs = torch.randn(STEPS, ROWS, 3, 128, 32, generator=generator).to(kind)
    targets = torch.randn(STEPS, ROWS, 2, generator=generator).to(kind)
    return list(zip(inputs, targets, strict=True))


def network(kind: torch.dtype) -> TorchLocalizationNet:
    """A convnext_tiny with its heads, and stochastic depth: the order of random numbers counts, too."""
    module: TorchLocalizationNet = LocalizationNet("convnext_tiny", origin=(45.0, 8.0), seed=2).module()
    return module.to(kind)


def negative_log_likelihood(outputs: tuple[torch.Tensor, torch.Tensor], target: torch.Tensor) -> torch.Tensor:
    mean, sigma = outputs
    return (((target - mean) / sigma).square() * 0.5 + sigma.log()).mean()


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_each_loss_of_a_convnext_is_that_of_a_plain_loop(make_trainer, kind):
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network(kind)

        def forward(self, spectrograms: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            outputs: tuple[torch.Tensor, torch.Tensor] = self.network(spectrograms)
            return outputs

    theirs, ours = Plain(), Plain()
    settings = {"lr": 1e-3, "weight_decay": 0.05}
    optimizer = torch.optim.AdamW(theirs.parameters(), **settings)
    expected = []
    torch.manual_seed(11)
    theirs.train()
    for inputs, target in batches(kind):
        loss = negative_log_likelihood(theirs(inputs), target)
        expected.append(loss.item())
        loss.backward()
        nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    losses = []

    def noted(outputs: tuple[torch.Tensor, torch.Tensor], target: torch.Tensor) -> torch.Tensor:
        value = negative_log_likelihood(outputs, target)
        losses.append(value.item())
        return value

    mine = torch.optim.AdamW(ours.parameters(), **settings)
    torch.manual_seed(11)
    trainer = make_trainer(max_epochs=1, gradient_clip_val=1.0, num_threads=torch.get_num_threads())
    trainer.fit(ours, batches(kind), loss=noted, optimizer=mine)

    assert len(losses) == STEPS
    assert losses == pytest.approx(expected, rel=1e-6)
    state, other = optimizer.state_dict()["state"], mine.state_dict()["state"]
    for index, values in state.items():
        assert values["step"] == other[index]["step"] == STEPS
        for name in ("exp_avg", "exp_avg_sq"):
            size = values[name].abs().max().item()
            assert torch.allclose(values[name], other[index][name], rtol=1e-6, atol=1e-6 * size)
