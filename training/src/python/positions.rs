//! Positions and receivers as Python passes and shows them.

use crate::{
    dataset::Receiver,
    error::{Error, Result},
    geo::LatLon,
};

/// A receiver in Python: id, latitude, longitude.
pub(super) type ReceiverTuple = (String, f64, f64);

/// Returns receivers as Python shows them.
pub(super) fn receiver_tuples(receivers: &[Receiver]) -> Vec<ReceiverTuple> {
    receivers
        .iter()
        .map(|rx| (rx.id.clone(), rx.position.lat, rx.position.lon))
        .collect()
}

/// Returns receivers as Python passes them.
///
/// # Errors
/// [`Error::Configuration`] for a position that is not on the earth.
pub(super) fn receivers_of(tuples: Vec<ReceiverTuple>) -> Result<Vec<Receiver>> {
    let parse = |(id, lat, lon)| match LatLon::new(lat, lon) {
        Some(position) => Ok(Receiver { id, position }),
        None => {
            let value = format!("{id:?} at ({lat}, {lon})");
            Err(Error::configuration(
                "receivers",
                value,
                "a position must be a latitude and a longitude in degrees",
            ))
        }
    };
    tuples.into_iter().map(parse).collect()
}

/// Returns positions as a tensor of degrees, `[n, 2]`.
pub(super) fn degrees(positions: &[LatLon]) -> Result<tch::Tensor> {
    let values: Vec<f64> = positions
        .iter()
        .flat_map(|position| [position.lat, position.lon])
        .collect();
    Ok(tch::Tensor::f_from_slice(&values)?.f_view([-1, 2])?)
}
