//! The queries of garbage collection to a tracking server.

use serde::Deserialize;
use serde_json::json;

use super::{
    client::Failure,
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
        registry::VersionFiles,
        tracking::{LoggedModelFiles, RunRow, TrackingStore},
    },
};

/// Number of experiments that one query for logged models names.
const EXPERIMENTS: usize = 50;

#[derive(Deserialize)]
struct Versions {
    #[serde(default)]
    model_versions: Vec<Version>,
    #[serde(default)]
    next_page_token: String,
}

#[derive(Deserialize)]
struct Version {
    name: String,
    #[serde(default, deserialize_with = "wire::integer")]
    version: Option<i64>,
    #[serde(default)]
    source: String,
    #[serde(default)]
    run_id: String,
}

#[derive(Deserialize)]
struct DownloadUri {
    #[serde(default)]
    artifact_uri: String,
}

#[derive(Deserialize)]
struct LoggedModels {
    #[serde(default)]
    models: Vec<LoggedModel>,
    #[serde(default)]
    next_page_token: String,
}

#[derive(Deserialize)]
struct LoggedModel {
    info: LoggedModelInfo,
}

#[derive(Deserialize)]
struct LoggedModelInfo {
    model_id: String,
    #[serde(default)]
    artifact_uri: String,
}

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
            let mut token = String::new();
            loop {
                let mut question = json!({"experiment_ids": ids});
                if !token.is_empty() {
                    question["page_token"] = token.into();
                }
                let page = self
                    .client
                    .ask::<LoggedModels>("logged-models/search", &question)
                    .await;
                let page = match page {
                    // The server is older than MLflow 3 and has no logged models.
                    Err(failure) if is_unknown(&failure) => return Ok(found),
                    page => page.map_err(|failure| self.error(failure))?,
                };
                let models = page.models.into_iter().map(|model| LoggedModelFiles {
                    model_id: model.info.model_id,
                    artifact_location: model.info.artifact_uri,
                });
                found.extend(models);
                if page.next_page_token.is_empty() {
                    break;
                }
                token = page.next_page_token;
            }
        }
        Ok(found)
    }

    pub(crate) async fn files_of_versions(&self) -> Result<Vec<VersionFiles>, StoreError> {
        let mut found = Vec::new();
        let mut token = String::new();
        let size = PAGE.to_string();
        loop {
            let mut query = vec![("max_results", size.as_str())];
            if !token.is_empty() {
                query.push(("page_token", token.as_str()));
            }
            let page: Versions = self
                .client
                .get("model-versions/search", &query)
                .await
                .map_err(|failure| self.error(failure))?;
            for it in page.model_versions {
                let version = it.version.unwrap_or_default();
                // Only a source of this form does not tell the place of the files.
                let location = if it.source.starts_with("models:") {
                    self.download_uri_of(&it.name, version).await?
                } else {
                    None
                };
                found.push(VersionFiles {
                    name: it.name,
                    version,
                    source: it.source,
                    location,
                    run_id: Some(it.run_id).filter(|id| !id.is_empty()),
                });
            }
            if page.next_page_token.is_empty() {
                return Ok(found);
            }
            token = page.next_page_token;
        }
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
            .get::<DownloadUri>("model-versions/get-download-uri", &query)
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
fn is_unknown(failure: &Failure) -> bool {
    failure.is("ENDPOINT_NOT_FOUND") || matches!(failure, Failure::Store(StoreError::Open { .. }))
}
