"""Trains by ignite; its logger records by MLflow."""

import torch
from ignite.engine import Engine, Events
from ignite.handlers.mlflow_logger import MLflowLogger, global_step_from_engine

network = torch.nn.Linear(2, 1)
optimizer = torch.optim.SGD(network.parameters(), lr=0.125)


def update(engine, batch):
    """Make one step."""
    optimizer.zero_grad()
    loss = network(batch).square().mean()
    loss.backward()
    optimizer.step()
    return loss.item()


trainer = Engine(update)
evaluator = Engine(lambda engine, batch: 0.5)


@trainer.on(Events.EPOCH_COMPLETED)
def evaluate():
    """Look at the network after each epoch."""
    evaluator.run([torch.ones(4, 2)])


with MLflowLogger() as logger:
    logger.log_params({"lr": 0.125, "epochs": 2})
    logger.attach_output_handler(
        trainer, Events.ITERATION_COMPLETED, tag="train", output_transform=lambda loss: {"loss": loss}
    )
    logger.attach_output_handler(
        evaluator,
        Events.COMPLETED,
        tag="val",
        output_transform=lambda loss: {"loss": loss},
        global_step_transform=global_step_from_engine(trainer, Events.ITERATION_COMPLETED),
    )
    logger.attach_opt_params_handler(trainer, Events.ITERATION_STARTED, optimizer=optimizer)
    trainer.run([torch.ones(4, 2)] * 3, max_epochs=2)
