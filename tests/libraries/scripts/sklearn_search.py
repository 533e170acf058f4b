"""Searches a grid by scikit-learn, which autologging records by MLflow."""

import mlflow
import numpy as np
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV

mlflow.sklearn.autolog(log_models=False, max_tuning_runs=None, silent=True)
inputs = np.arange(20.0).reshape(10, 2)
search = GridSearchCV(Ridge(), {"alpha": [0.5, 1.0, 2.0]}, cv=2)
search.fit(inputs, inputs.sum(axis=1))
