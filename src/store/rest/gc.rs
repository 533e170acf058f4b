//! The queries of garbage collection to a tracking server.

use serde_json::json;

use super::{
    client::RequestError,
    pages::all_pages,
    store::{PAGE, RestStore},
    wire,
};
use crate::{
    mlflow::{
        run::ViewType,
        search::runs::{Filter, RunQuery},
    },
    store::{
        error::StoreError,
        registry::{LoggedModel, ModelVersion, VersionFiles},
        tracking::{LoggedModelFiles, RunRow, TrackingStore},
    },
};

/// Number of experiments that one query for logged models names.
const EXPERIMENTS: usize = 50;

impl RestStore {
    pub(crate) async fn rows_of_runs(
        &self,
        experiment_id: &str,
    ) -> Result<Vec<RunRow>, StoreError> {
        let query = RunQuery {
            experiment_ids: vec![experiment_id.to_owned()],
            filter: Filter::default(),
            order_by: Vec::new(),
            view: ViewType::All,
            max_results: usize::MAX,
            numbers_only: false,
        };
        let runs = self.search_runs(&query).await?;
        // A server does not tell the time when a run was deleted.
        let rows = runs.into_iter().map(|run| RunRow {
            run,
            deleted_time: None,
        });
        Ok(rows.collect())
    }

    pub(crate) async fn files_of_logged_models(
        &self,
        experiment_ids: &[String],
    ) -> Result<Vec<LoggedModelFiles>, StoreError> {
        let mut found = Vec::new();
        for ids in experiment_ids.chunks(EXPERIMENTS) {
            let page = |token: String, _| async move {
                let mut question = json!({"experiment_ids": ids});
                if !token.is_empty() {
                    question["page_token"] = token.into();
                }
                self.client.ask("logged-models/search", &question).await
            };
            let models: Vec<wire::LoggedModel> = match all_pages(usize::MAX, page).await {
                // The server is older than MLflow 3 and has no logged models.
                Err(failure) if is_unknown(&failure) => return Ok(found),
                models => models.map_err(|failure| self.error(failure))?,
            };
            found.extend(models.into_iter().map(|model| {
                let model = LoggedModel::from(model);
                LoggedModelFiles {
                    model_id: model.model_id,
                    artifact_location: model.artifact_uri,
                }
            }));
        }
        Ok(found)
    }

    pub(crate) async fn files_of_versions(&self) -> Result<Vec<VersionFiles>, StoreError> {
        let size = &PAGE.to_string();
        let page = |token: String, _| async move {
            let mut query = vec![("max_results", size.as_str())];
            if !token.is_empty() {
                query.push(("page_token", token.as_str()));
            }
            self.client.get("model-versions/search", &query).await
        };
        let versions: Vec<wire::ModelVersion> = all_pages(usize::MAX, page)
            .await
            .map_err(|failure| self.error(failure))?;
        let mut found = Vec::new();
        for version in versions.into_iter().map(ModelVersion::from) {
            // Only a source of this form does not tell the place of the files.
            let location = if version.source.starts_with("models:") {
                self.download_uri_of(&version.name, version.version).await?
            } else {
                None
            };
            found.push(VersionFiles {
                name: version.name,
                version: version.version,
                source: version.source,
                location,
                run_id: version.run_id,
            });
        }
        Ok(found)
    }

    /// Returns the URI of a version's files; none where the version has been deleted meanwhile.
    async fn download_uri_of(
        &self,
        name: &str,
        version: i64,
    ) -> Result<Option<String>, StoreError> {
        let version = version.to_string();
        let query = [("name", name), ("version", version.as_str())];
        let answer = self
            .client
            .get::<wire::DownloadUri>("model-versions/get-download-uri", &query)
            .await;
        match answer {
            Ok(answer) => Ok(Some(answer.artifact_uri).filter(|uri| !uri.is_empty())),
            Err(failure) if failure.is("RESOURCE_DOES_NOT_EXIST") => Ok(None),
            Err(failure) => Err(self.error(failure)),
        }
    }
}

/// Returns true where a server does not know the path of a query. The server has answered other queries, so it is
/// reachable and is an MLflow server.
fn is_unknown(failure: &RequestError) -> bool {
    failure.is("ENDPOINT_NOT_FOUND")
        || matches!(failure, RequestError::Store(StoreError::Open { .. }))
}
