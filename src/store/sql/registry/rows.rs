//! Rows of registered models and versions.

use crate::store::{
    registry::{ModelVersion, RegisteredModel},
    sql::row::Row,
};

/// The stage by which MLflow marks deleted versions.
pub(crate) const DELETED: &str = "Deleted_Internal";

/// Columns of a model, in the order that [`model`] reads; the table's alias is `m`.
pub(crate) const MODEL_COLUMNS: &str =
    "m.name, m.creation_time, m.last_updated_time, m.description";

/// Columns of a version, in the order that [`version`] reads; the table's alias is `v`.
pub(crate) const VERSION_COLUMNS: &str = "v.name, v.version, v.creation_time, v.last_updated_time, v.description, \
                                          v.user_id, v.current_stage, v.source, v.run_id, v.run_link, v.status, \
                                          v.status_message";

/// Returns the model of a row of [`MODEL_COLUMNS`].
pub(crate) fn model(row: &Row) -> Result<RegisteredModel, sqlx::Error> {
    Ok(RegisteredModel {
        name: row.string(0)?,
        creation_time: row.int(1)?,
        last_updated_time: row.int(2)?,
        description: row.string(3)?,
        ..RegisteredModel::default()
    })
}

/// Returns the version of a row of [`VERSION_COLUMNS`].
pub(crate) fn version(row: &Row) -> Result<ModelVersion, sqlx::Error> {
    // A server writes an empty text where the client has given none.
    let given = |column| {
        let text = row.text(column)?;
        Ok::<_, sqlx::Error>(text.filter(|text| !text.is_empty()))
    };
    Ok(ModelVersion {
        name: row.string(0)?,
        version: row.int(1)?.unwrap_or_default(),
        creation_time: row.int(2)?,
        last_updated_time: row.int(3)?,
        description: row.string(4)?,
        user_id: given(5)?,
        stage: row.string(6)?,
        source: row.string(7)?,
        run_id: given(8)?,
        run_link: given(9)?,
        status: row.string(10)?,
        status_message: given(11)?,
        ..ModelVersion::default()
    })
}
