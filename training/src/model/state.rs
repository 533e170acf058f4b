//! The named tensors of a network, in the order and under the names of PyTorch's `state_dict()`.

use tch::{Device, Kind, Tensor};

use crate::error::{Error, Result};

/// One tensor of a network.
#[derive(Debug)]
pub struct Entry {
    /// Dotted name, for example `trunk.0.weight`.
    pub name: String,
    /// The tensor; a layer holds the same one.
    pub tensor: Tensor,
    /// True where the tensor is learned; false for others, such as BatchNorm's running mean and frozen weights.
    pub learned: bool,
}

/// All tensors of a network.
#[derive(Debug, Default)]
pub struct State {
    entries: Vec<Entry>,
}

impl State {
    /// Returns the tensors in order.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Returns the learned tensors in order.
    pub fn parameters(&self) -> Vec<Tensor> {
        self.entries
            .iter()
            .filter(|entry| entry.learned)
            .map(|entry| entry.tensor.shallow_clone())
            .collect()
    }

    /// Returns all tensors with their names.
    pub fn named(&self) -> Vec<(String, Tensor)> {
        let entries = self.entries.iter();
        entries
            .map(|entry| (entry.name.clone(), entry.tensor.shallow_clone()))
            .collect()
    }

    /// Marks the tensors below a prefix as not learned: they get no gradient, and no optimiser finds them.
    pub(crate) fn freeze(&mut self, prefix: &str) -> Result<()> {
        for entry in &mut self.entries {
            if entry.name.starts_with(prefix) {
                entry.tensor = entry.tensor.f_set_requires_grad(false)?;
                entry.learned = false;
            }
        }
        Ok(())
    }

    /// Returns copies of all tensors, independent of the network.
    pub fn copy(&self) -> Result<Vec<(String, Tensor)>> {
        let copied = self.entries.iter().map(|entry| {
            let mut copy = entry.tensor.f_detach()?.f_empty_like()?;
            copy.f_copy_(&entry.tensor.f_detach()?)?;
            Ok((entry.name.clone(), copy))
        });
        copied.collect()
    }

    /// Overwrites every tensor with the one of the same name. The names must match exactly, and every shape must be
    /// right; otherwise nothing is changed.
    pub fn load(&self, tensors: &[(String, Tensor)]) -> Result<()> {
        let what = "the state dict";
        let find = |name: &str| {
            tensors
                .iter()
                .find(|(other, _)| other == name)
                .map(|(_, tensor)| tensor)
        };
        for (name, _) in tensors {
            if !self.entries.iter().any(|entry| entry.name == *name) {
                let expected = "of this network".to_owned();
                return Err(Error::Shape {
                    what,
                    expected,
                    found: format!("one that holds {name:?} as well"),
                });
            }
        }
        let mut pairs = Vec::with_capacity(self.entries.len());
        for Entry { name, tensor, .. } in &self.entries {
            let Some(source) = find(name) else {
                let expected = format!("complete, with {name:?}");
                return Err(Error::Shape {
                    what,
                    expected,
                    found: "one without it".to_owned(),
                });
            };
            if source.size() != tensor.size() {
                let expected = format!("one with {name:?} of shape {:?}", tensor.size());
                return Err(Error::Shape {
                    what,
                    expected,
                    found: format!("{:?}", source.size()),
                });
            }
            pairs.push((tensor.shallow_clone(), source));
        }
        let _no_grad = tch::no_grad_guard();
        for (mut target, source) in pairs {
            target.f_copy_(source)?;
        }
        Ok(())
    }
}

/// The place where a layer registers its tensors: the state and the dotted prefix of their names.
#[derive(Debug)]
pub(crate) struct Scope<'a> {
    state: &'a mut State,
    prefix: String,
}

impl<'a> Scope<'a> {
    pub(crate) fn root(state: &'a mut State) -> Self {
        Self {
            state,
            prefix: String::new(),
        }
    }

    pub(crate) fn child(&mut self, name: impl std::fmt::Display) -> Scope<'_> {
        Scope {
            prefix: format!("{}{name}.", self.prefix),
            state: self.state,
        }
    }

    fn add(&mut self, name: &str, tensor: Tensor, learned: bool) -> Tensor {
        let shared = tensor.shallow_clone();
        self.state.entries.push(Entry {
            name: format!("{}{name}", self.prefix),
            tensor,
            learned,
        });
        shared
    }

    /// Adds a learned tensor drawn uniformly from `−bound…bound`.
    pub(crate) fn uniform(&mut self, name: &str, shape: &[i64], bound: f64) -> Result<Tensor> {
        let tensor =
            Tensor::f_empty(shape, (Kind::Float, Device::Cpu))?.f_uniform_(-bound, bound)?;
        Ok(self.add(name, tensor.f_set_requires_grad(true)?, true))
    }

    /// Adds a learned tensor drawn from the normal distribution around 0.
    pub(crate) fn normal(&mut self, name: &str, shape: &[i64], std: f64) -> Result<Tensor> {
        let tensor = Tensor::f_empty(shape, (Kind::Float, Device::Cpu))?.f_normal_(0.0, std)?;
        Ok(self.add(name, tensor.f_set_requires_grad(true)?, true))
    }

    /// Adds a learned tensor of one value.
    pub(crate) fn constant(&mut self, name: &str, shape: &[i64], value: f64) -> Result<Tensor> {
        let tensor = Tensor::f_full(shape, value, (Kind::Float, Device::Cpu))?;
        Ok(self.add(name, tensor.f_set_requires_grad(true)?, true))
    }

    /// Adds a tensor that is kept and not learned.
    pub(crate) fn buffer(&mut self, name: &str, tensor: Tensor) -> Tensor {
        self.add(name, tensor, false)
    }
}
