//! The output of the Heimdall networks: one head for the position, one for its uncertainty.

use tch::Tensor;

use super::{
    layers::{BatchNorm1d, Linear},
    state::Scope,
};
use crate::error::Result;

/// `Linear(F→128) BatchNorm ReLU Dropout 0.3, Linear(128→64) BatchNorm ReLU Dropout 0.2, Linear(64→2)`, with
/// the names of a `torch.nn.Sequential`.
#[derive(Debug)]
pub(crate) struct Head {
    first: (Linear, BatchNorm1d),
    second: (Linear, BatchNorm1d),
    pub(crate) last: Linear,
    dropout: [f64; 2],
}

impl Head {
    pub(crate) fn new(mut scope: Scope<'_>, features: i64, dropout: [f64; 2]) -> Result<Self> {
        Ok(Self {
            first: (
                Linear::new(scope.child(0), features, 128)?,
                BatchNorm1d::new(scope.child(1), 128)?,
            ),
            second: (
                Linear::new(scope.child(4), 128, 64)?,
                BatchNorm1d::new(scope.child(5), 64)?,
            ),
            last: Linear::new(scope.child(8), 64, 2)?,
            dropout,
        })
    }

    pub(crate) fn forward(&self, features: &Tensor, train: bool) -> Result<Tensor> {
        let mut hidden = features.shallow_clone();
        for ((linear, norm), dropout) in [&self.first, &self.second].into_iter().zip(self.dropout) {
            hidden = norm
                .forward(&linear.forward(&hidden)?, train)?
                .f_relu()?
                .f_dropout(dropout, train)?;
        }
        self.last.forward(&hidden)
    }
}
