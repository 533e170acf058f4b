//! Load of the machine while a run is active, under MLflow's names and in its units.
//!
//! A [`Sampler`] is a separate thread that samples processor, memory, disk and network, and the GPUs where NVIDIA's
//! library is found. After a set number of samples it hands over their means as one point of each metric `system/…`, at
//! step 0, 1, 2 and so on; in a resumed run the steps continue behind the last one. Once the sampler is dropped, it
//! hands nothing over; samples that are not part of a point yet are dropped with it, as in MLflow.
//!
//! MLflow takes a sample, waits, and then logs the values from before the wait. Here a sample is taken after the wait,
//! so that a point describes the interval before its own time; number and time of the points are the same.

pub(crate) mod gpu;
pub(crate) mod host;
pub(crate) mod means;
pub(crate) mod sampler;
