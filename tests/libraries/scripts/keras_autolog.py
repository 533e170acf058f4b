"""Trains by keras, which autologging records by MLflow."""

import keras
import mlflow.keras
import numpy as np

mlflow.keras.autolog(log_models=False, log_datasets=False)
network = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
network.compile(optimizer=keras.optimizers.SGD(0.125), loss="mse")
network.fit(np.ones((8, 2)), np.ones((8, 1)), batch_size=4, epochs=2, verbose=0)
