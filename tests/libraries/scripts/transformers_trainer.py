"""Trains a network of transformers; its Trainer records by MLflow. `breaks` ends it by an error."""

import sys

import torch
from torch.utils.data import Dataset
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments


class Texts(Dataset):
    """Eight texts of four tokens, of two kinds."""

    def __len__(self):
        return 8

    def __getitem__(self, index):
        if "breaks" in sys.argv and index == 7:
            raise RuntimeError("the data is broken")
        return {"input_ids": torch.tensor([index, 1, 2, 3]), "labels": torch.tensor(index % 2)}


size = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
network = BertForSequenceClassification(BertConfig(vocab_size=16, max_position_embeddings=8, **size))
arguments = TrainingArguments(
    "out",
    report_to="mlflow",
    run_name="of the trainer",
    num_train_epochs=2,
    per_device_train_batch_size=4,
    learning_rate=0.125,
    logging_steps=1,
    eval_strategy="epoch",
    save_strategy="no",
    disable_tqdm=True,
    use_cpu=True,
)
Trainer(network, arguments, train_dataset=Texts(), eval_dataset=Texts()).train()
