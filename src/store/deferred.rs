//! A store that is opened when it is first needed, and again for as long as opening it fails.
//!
//! A server that is down when training starts does not stop the training: the store is opened by the first caller that
//! needs it, and that caller gets the error where opening fails.

use std::sync::{Arc, OnceLock};

use tokio::sync::Mutex;

use super::{error::StoreError, open::open, registry::ModelRegistry, tracking::TrackingStore};
use crate::config::{tracker::FreshSchema, uri::Destination};

/// The store and the model registry of a destination.
#[derive(Debug)]
pub(crate) struct DeferredStore {
    destination: Destination,
    fresh_schema: FreshSchema,
    opened: OnceLock<(Arc<dyn TrackingStore>, Arc<dyn ModelRegistry>)>,
    opening: Mutex<()>,
    /// True where the store is never opened: the user wants no network.
    is_offline: bool,
}

impl DeferredStore {
    /// Returns a store that is not open yet; an offline one never will be.
    pub(crate) fn new(
        destination: Destination,
        fresh_schema: FreshSchema,
        is_offline: bool,
    ) -> Self {
        Self {
            destination,
            fresh_schema,
            opened: OnceLock::new(),
            opening: Mutex::default(),
            is_offline,
        }
    }

    /// Returns a store that is open.
    #[cfg(test)]
    pub(crate) fn of(
        destination: Destination,
        store: Arc<dyn TrackingStore>,
        registry: Arc<dyn ModelRegistry>,
    ) -> Self {
        Self {
            opened: OnceLock::from((store, registry)),
            ..Self::new(destination, FreshSchema::default(), false)
        }
    }

    /// Returns true once the store has been reached.
    pub(crate) fn is_open(&self) -> bool {
        self.opened.get().is_some()
    }

    /// Returns the store of runs.
    ///
    /// # Errors
    /// The errors of [`open`]; [`StoreError::Unavailable`] for an offline store.
    pub(crate) async fn tracking(&self) -> Result<&dyn TrackingStore, StoreError> {
        Ok(self.opened().await?.0.as_ref())
    }

    /// Returns the model registry.
    ///
    /// # Errors
    /// The errors of [`DeferredStore::tracking`].
    pub(crate) async fn registry(&self) -> Result<&dyn ModelRegistry, StoreError> {
        Ok(self.opened().await?.1.as_ref())
    }

    async fn opened(
        &self,
    ) -> Result<&(Arc<dyn TrackingStore>, Arc<dyn ModelRegistry>), StoreError> {
        if let Some(opened) = self.opened.get() {
            return Ok(opened);
        }
        if self.is_offline {
            return Err(StoreError::Unavailable {
                destination: self.destination.uri(),
                source: "this tracker is offline: `heimdall sync` delivers what it records".into(),
                retry_after: None,
            });
        }
        // One of two callers that ask at the same time opens the store; the other waits.
        let _opening = self.opening.lock().await;
        if let Some(opened) = self.opened.get() {
            return Ok(opened);
        }
        let opened = open(&self.destination, &self.fresh_schema).await?;
        Ok(self.opened.get_or_init(|| opened))
    }
}
