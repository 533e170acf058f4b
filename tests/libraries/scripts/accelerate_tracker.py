"""Trains by a loop of its own; accelerate's tracker records by MLflow."""

import torch
from accelerate import Accelerator

accelerator = Accelerator(log_with="mlflow", cpu=True)
accelerator.init_trackers("of accelerate", config={"lr": 0.125, "epochs": 2})
network = torch.nn.Linear(2, 1)
optimizer = torch.optim.SGD(network.parameters(), lr=0.125)
network, optimizer = accelerator.prepare(network, optimizer)
for step in range(3):
    optimizer.zero_grad()
    loss = network(torch.ones(4, 2)).square().mean()
    accelerator.backward(loss)
    optimizer.step()
    accelerator.log({"train/loss": loss.item(), "step": float(step)}, step=step)
accelerator.end_training()
