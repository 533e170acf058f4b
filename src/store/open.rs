//! Opening the store that a destination names.

use std::sync::Arc;

use super::{
    error::StoreError, registry::ModelRegistry, rest::store::RestStore, sql::store::SqlStore,
    tracking::TrackingStore,
};
use crate::config::{server::ServerAccess, tracker::FreshSchema, uri::Destination};

/// Opens the store of a destination and its model registry.
///
/// # Errors
/// [`StoreError::Open`] where the user must correct something first, [`StoreError::Unavailable`] where waiting may
/// help.
pub(crate) async fn open(
    destination: &Destination,
    fresh_schema: &FreshSchema,
) -> Result<(Arc<dyn TrackingStore>, Arc<dyn ModelRegistry>), StoreError> {
    match destination {
        Destination::Sqlite(_) | Destination::Postgres(_) => {
            let store = Arc::new(SqlStore::open(destination, fresh_schema).await?);
            Ok((Arc::clone(&store) as Arc<dyn TrackingStore>, store))
        }
        Destination::Server(uri) => {
            let access = ServerAccess::from_env().map_err(|error| StoreError::Open {
                destination: destination.uri(),
                reason: error.to_string(),
            })?;
            let store = Arc::new(RestStore::open(uri, &access).await?);
            Ok((Arc::clone(&store) as Arc<dyn TrackingStore>, store))
        }
    }
}
