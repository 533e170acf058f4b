//! Positions on the Earth and on the local map.
//!
//! The network works in metres east and north of an origin; the reported errors are great-circle distances between
//! latitudes and longitudes. Both use the same sphere.

use serde::{Deserialize, Serialize};

/// Mean radius of the Earth (IUGG's R₁, rounded to kilometres) in metres.
pub const EARTH_RADIUS_M: f64 = 6_371_000.0;

/// A position in degrees (WGS 84).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct LatLon {
    /// Latitude in degrees, −90…90.
    pub lat: f64,
    /// Longitude in degrees, −180…180.
    pub lon: f64,
}

impl LatLon {
    /// Returns a position, if both angles are in range.
    pub fn new(lat: f64, lon: f64) -> Option<Self> {
        ((-90.0..=90.0).contains(&lat) && (-180.0..=180.0).contains(&lon))
            .then_some(Self { lat, lon })
    }

    /// Returns the arithmetic mean of the coordinates; good within a region that does not reach the date line or a
    /// pole.
    pub fn mean(positions: &[Self]) -> Option<Self> {
        if positions.is_empty() {
            return None;
        }
        let n = positions.len() as f64;
        Some(Self {
            lat: positions.iter().map(|p| p.lat).sum::<f64>() / n,
            lon: positions.iter().map(|p| p.lon).sum::<f64>() / n,
        })
    }

    /// Returns the great-circle distance to `other` in metres (haversine formula on a sphere of [`EARTH_RADIUS_M`]).
    pub fn distance_m(self, other: Self) -> f64 {
        let (lat_a, lat_b) = (self.lat.to_radians(), other.lat.to_radians());
        let half_lat = (lat_b - lat_a) / 2.0;
        let half_lon = (other.lon - self.lon).to_radians() / 2.0;
        let h = half_lat.sin().powi(2) + lat_a.cos() * lat_b.cos() * half_lon.sin().powi(2);
        2.0 * EARTH_RADIUS_M * h.min(1.0).sqrt().asin()
    }
}

/// Metres east and north of the origin of a [`LocalFrame`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct EastNorth {
    /// Metres east.
    pub east: f64,
    /// Metres north.
    pub north: f64,
}

/// A flat map around an origin (equirectangular projection).
///
/// Over the few kilometres of a receiver network, the map is accurate to about a metre.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct LocalFrame {
    /// The point at which east and north are zero.
    pub origin: LatLon,
}

impl LocalFrame {
    fn metres_per_degree(self) -> (f64, f64) {
        let north = EARTH_RADIUS_M * 1f64.to_radians();
        (north * self.origin.lat.to_radians().cos(), north)
    }

    /// Returns a position as a point on the map.
    pub fn to_local(self, position: LatLon) -> EastNorth {
        let (per_lon, per_lat) = self.metres_per_degree();
        EastNorth {
            east: (position.lon - self.origin.lon) * per_lon,
            north: (position.lat - self.origin.lat) * per_lat,
        }
    }

    /// Returns the position of a point on the map.
    pub fn to_lat_lon(self, point: EastNorth) -> LatLon {
        let (per_lon, per_lat) = self.metres_per_degree();
        LatLon {
            lat: self.origin.lat + point.north / per_lat,
            lon: self.origin.lon + point.east / per_lon,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(lat: f64, lon: f64) -> LatLon {
        LatLon::new(lat, lon).unwrap()
    }

    #[test]
    fn a_degree_of_latitude_is_a_360th_of_the_circumference() {
        let expected = 2.0 * std::f64::consts::PI * EARTH_RADIUS_M / 360.0;
        assert!((at(45.0, 8.0).distance_m(at(46.0, 8.0)) - expected).abs() < 1e-6);
    }

    #[test]
    fn torino_to_milano_is_126_kilometres() {
        let km = at(45.0703, 7.6869).distance_m(at(45.4642, 9.19)) / 1000.0;
        assert!((km - 125.5).abs() < 1.0, "{km}");
    }

    #[test]
    fn antipodes_are_half_the_circumference_apart() {
        let distance = at(30.0, 20.0).distance_m(at(-30.0, -160.0));
        assert!(
            (distance - std::f64::consts::PI * EARTH_RADIUS_M).abs() < 1.0,
            "{distance}"
        );
    }

    #[test]
    fn angles_out_of_range_are_no_position() {
        assert_eq!(LatLon::new(90.1, 0.0), None);
        assert_eq!(LatLon::new(0.0, f64::NAN), None);
    }

    #[test]
    fn the_map_agrees_with_the_great_circle_over_a_campus() {
        let frame = LocalFrame {
            origin: at(40.766, -111.841),
        };
        let (a, b) = (at(40.7508, -111.8596), at(40.7736, -111.8229));
        let (p, q) = (frame.to_local(a), frame.to_local(b));
        let flat = (p.east - q.east).hypot(p.north - q.north);
        assert!(
            (flat - a.distance_m(b)).abs() < 1.0,
            "{flat} vs {}",
            a.distance_m(b)
        );
    }

    proptest! {
        #[test]
        fn the_map_is_its_own_inverse(east in -5000.0..5000.0f64, north in -5000.0..5000.0f64) {
            let frame = LocalFrame { origin: at(45.0, 8.0) };
            let back = frame.to_local(frame.to_lat_lon(EastNorth { east, north }));
            prop_assert!((back.east - east).abs() < 1e-6 && (back.north - north).abs() < 1e-6);
        }
    }
}
