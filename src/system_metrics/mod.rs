//! What the machine does while a run is active, under MLflow's names and in its units.
//!
//! A [`Sampler`] is a thread of its own that looks at processor, memory, disk, network and, where NVIDIA's
//! library is found, at the GPUs. Every so many samples it hands over their means as one point of each metric
//! `system/…`, at step 0, 1, 2 and so on, or going on behind the last step of a run that is resumed. Nothing is
//! handed over once it is dropped; what was not yet a point then is dropped with it, as by MLflow.
//!
//! MLflow takes a sample, waits, and then logs what it saw before it waited. Here a sample is taken after the
//! wait, so that a point is about the interval before its own time; number and time of the points are the same.

pub mod gpu;
pub mod host;
pub mod means;
pub mod sampler;
