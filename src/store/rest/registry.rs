//! Registered models and their versions at a server.

use std::collections::{BTreeSet, HashMap};

use async_trait::async_trait;
use futures_util::{StreamExt, TryStreamExt, stream};
use reqwest::Method;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::{Value, json};

use super::{
    client::RequestError,
    pages::all_pages,
    store::{PAGE, RestStore, TOGETHER},
    wire,
};
use crate::{
    mlflow::{
        key::Key,
        model::{Alias, ModelName, Stage, TagValue},
        run::RunInfo,
        search::models::{ModelQuery, VersionQuery},
    },
    store::{
        error::StoreError,
        registry::{
            self, LoggedModel, ModelRegistry, ModelVersion, NewModel, NewVersion, RegisteredModel,
            VERSIONS_TAG, VersionFiles,
        },
    },
};

/// Characters that the name of a logged model does not have.
const NOT_IN_NAMES: [char; 6] = ['/', ':', '.', '%', '"', '\''];

#[async_trait]
impl ModelRegistry for RestStore {
    async fn create_model(&self, new: &NewModel) -> Result<RegisteredModel, StoreError> {
        let body = json!({
            "name": new.name.as_str(),
            "description": new.description,
            "tags": pairs(&new.tags),
        });
        let path = "registered-models/create";
        let created: wire::OneModel = self
            .client
            .post(path, &body)
            .await
            .map_err(|failure| self.model_error(&new.name, failure))?;
        Ok(created.registered_model.into())
    }

    async fn model(&self, name: &ModelName) -> Result<RegisteredModel, StoreError> {
        let query = [("name", name.as_str())];
        let found = self.client.get("registered-models/get", &query).await;
        let found: wire::OneModel = found.map_err(|failure| self.model_error(name, failure))?;
        Ok(found.registered_model.into())
    }

    async fn rename_model(
        &self,
        name: &ModelName,
        new_name: &ModelName,
    ) -> Result<RegisteredModel, StoreError> {
        let body = json!({"name": name.as_str(), "new_name": new_name.as_str()});
        let renamed = self
            .client
            .post::<IgnoredAny>("registered-models/rename", &body)
            .await;
        renamed.map_err(|failure| {
            if is_taken(&failure) {
                self.model_error(new_name, failure)
            } else {
                self.model_error(name, failure)
            }
        })?;
        self.model(new_name).await
    }

    async fn describe_model(
        &self,
        name: &ModelName,
        description: &str,
    ) -> Result<RegisteredModel, StoreError> {
        let body = json!({"name": name.as_str(), "description": description});
        let path = "registered-models/update";
        self.change_model(Method::PATCH, path, name, &body).await?;
        self.model(name).await
    }

    async fn delete_model(&self, name: &ModelName) -> Result<(), StoreError> {
        let body = json!({"name": name.as_str()});
        let path = "registered-models/delete";
        self.change_model(Method::DELETE, path, name, &body).await
    }

    async fn set_model_tag(
        &self,
        name: &ModelName,
        key: &Key,
        value: &TagValue,
    ) -> Result<(), StoreError> {
        let body = json!({"name": name.as_str(), "key": key.as_str(), "value": value.as_str()});
        let path = "registered-models/set-tag";
        self.change_model(Method::POST, path, name, &body).await
    }

    async fn delete_model_tag(&self, name: &ModelName, key: &Key) -> Result<(), StoreError> {
        let body = json!({"name": name.as_str(), "key": key.as_str()});
        let path = "registered-models/delete-tag";
        self.change_model(Method::DELETE, path, name, &body).await
    }

    async fn search_models(&self, query: &ModelQuery) -> Result<Vec<RegisteredModel>, StoreError> {
        let (path, filter) = ("registered-models/search", &query.filter.text);
        let order_by: Vec<&str> = query.order_by.iter().map(|it| it.text.as_str()).collect();
        let found: Vec<wire::RegisteredModel> = self
            .search(path, filter, &order_by, query.max_results)
            .await?;
        Ok(found.into_iter().map(Into::into).collect())
    }

    async fn create_version(&self, new: &NewVersion) -> Result<ModelVersion, StoreError> {
        let body = json!({"name": new.name.as_str()});
        let created = self
            .client
            .post::<IgnoredAny>("registered-models/create", &body)
            .await;
        match created {
            Err(failure) if !is_taken(&failure) => {
                return Err(self.model_error(&new.name, failure));
            }
            _ => {}
        }
        let mut body = json!({
            "name": new.name.as_str(),
            "source": new.source,
            "description": new.description,
            "tags": pairs(&new.tags),
        });
        // The server compares the ids that are in the body with the source, and takes a null as an id: ids are left out
        // where there are none.
        if let Some(run_id) = &new.run_id {
            body["run_id"] = run_id.as_str().into();
        }
        if let Some(model_id) = &new.model_id {
            body["model_id"] = model_id.as_str().into();
        }
        let created: wire::OneVersion = self
            .client
            .post("model-versions/create", &body)
            .await
            .map_err(|failure| self.model_error(&new.name, failure))?;
        Ok(created.model_version.into())
    }

    async fn version(&self, name: &ModelName, version: i64) -> Result<ModelVersion, StoreError> {
        let number = version.to_string();
        let query = [("name", name.as_str()), ("version", number.as_str())];
        let found = self.client.get("model-versions/get", &query).await;
        let found: wire::OneVersion =
            found.map_err(|failure| self.version_error(name, version, failure))?;
        Ok(found.model_version.into())
    }

    async fn version_by_alias(
        &self,
        name: &ModelName,
        alias: &Alias,
    ) -> Result<ModelVersion, StoreError> {
        let query = [("name", name.as_str()), ("alias", alias.as_str())];
        let found = self.client.get("registered-models/alias", &query).await;
        let found: Result<wire::OneVersion, RequestError> = found;
        match found {
            Ok(found) => Ok(found.model_version.into()),
            Err(failure)
                if failure.is("RESOURCE_DOES_NOT_EXIST")
                    || failure.is("INVALID_PARAMETER_VALUE") =>
            {
                // MLflow answers `INVALID_PARAMETER_VALUE` for a valid alias that the model does not have.
                self.model(name).await?;
                Err(StoreError::NotFound {
                    what: format!("alias {:?} of model {:?}", alias.as_str(), name.as_str()),
                    destination: self.client.base().to_owned(),
                })
            }
            Err(failure) => Err(self.error(failure)),
        }
    }

    async fn search_versions(&self, query: &VersionQuery) -> Result<Vec<ModelVersion>, StoreError> {
        let (path, filter) = ("model-versions/search", &query.filter.text);
        let order_by: Vec<&str> = query.order_by.iter().map(|it| it.text.as_str()).collect();
        let found: Vec<wire::ModelVersion> = self
            .search(path, filter, &order_by, query.max_results)
            .await?;
        let found = found.into_iter().map(Into::into).collect();
        self.with_aliases(found).await
    }

    async fn download_uri(&self, name: &ModelName, version: i64) -> Result<String, StoreError> {
        let number = version.to_string();
        let query = [("name", name.as_str()), ("version", number.as_str())];
        let path = "model-versions/get-download-uri";
        let found = self.client.get(path, &query).await;
        let found: wire::DownloadUri =
            found.map_err(|failure| self.version_error(name, version, failure))?;
        Ok(found.artifact_uri)
    }

    async fn describe_version(
        &self,
        name: &ModelName,
        version: i64,
        description: &str,
    ) -> Result<ModelVersion, StoreError> {
        let body = json!({"description": description});
        let path = "model-versions/update";
        self.change_version(Method::PATCH, path, name, version, body)
            .await?;
        self.version(name, version).await
    }

    async fn set_stage(
        &self,
        name: &ModelName,
        version: i64,
        stage: Stage,
        archive: bool,
    ) -> Result<(), StoreError> {
        let body = json!({"stage": stage.as_str(), "archive_existing_versions": archive});
        let path = "model-versions/transition-stage";
        self.change_version(Method::POST, path, name, version, body)
            .await
    }

    async fn set_version_tag(
        &self,
        name: &ModelName,
        version: i64,
        key: &Key,
        value: &TagValue,
    ) -> Result<(), StoreError> {
        let body = json!({"key": key.as_str(), "value": value.as_str()});
        let path = "model-versions/set-tag";
        self.change_version(Method::POST, path, name, version, body)
            .await
    }

    async fn delete_version_tag(
        &self,
        name: &ModelName,
        version: i64,
        key: &Key,
    ) -> Result<(), StoreError> {
        let body = json!({"key": key.as_str()});
        let path = "model-versions/delete-tag";
        self.change_version(Method::DELETE, path, name, version, body)
            .await
    }

    async fn delete_version(&self, name: &ModelName, version: i64) -> Result<(), StoreError> {
        let path = "model-versions/delete";
        self.change_version(Method::DELETE, path, name, version, json!({}))
            .await
    }

    async fn set_alias(
        &self,
        name: &ModelName,
        alias: &Alias,
        version: i64,
    ) -> Result<(), StoreError> {
        let body = json!({"alias": alias.as_str()});
        let path = "registered-models/alias";
        self.change_version(Method::POST, path, name, version, body)
            .await
    }

    async fn delete_alias(&self, name: &ModelName, alias: &Alias) -> Result<(), StoreError> {
        let body = json!({"name": name.as_str(), "alias": alias.as_str()});
        let path = "registered-models/alias";
        self.change_model(Method::DELETE, path, name, &body).await
    }

    async fn logged_model(&self, model_id: &str) -> Result<LoggedModel, StoreError> {
        self.logged(model_id).await.map(Into::into)
    }

    async fn logged_model_of(
        &self,
        run: &RunInfo,
        name: &str,
    ) -> Result<Option<LoggedModel>, StoreError> {
        if name.is_empty() || name.contains(NOT_IN_NAMES) {
            return Ok(None);
        }
        let page = |token: String, _| async move {
            let question = json!({
                "experiment_ids": [run.experiment_id],
                "filter": format!("name = '{name}'"),
                "page_token": token,
            });
            self.client.ask("logged-models/search", &question).await
        };
        let found: Vec<wire::LoggedModel> = match all_pages(usize::MAX, page).await {
            // A server before MLflow 3 does not have this path, and has no logged models.
            Err(RequestError::Store(StoreError::Open { .. })) => return Ok(None),
            found => found.map_err(|failure| self.error(failure))?,
        };
        let of_run = found
            .into_iter()
            .filter(|it| it.info.source_run_id == run.run_id);
        let newest = of_run.max_by_key(|it| it.info.creation_timestamp_ms);
        Ok(newest.map(Into::into))
    }

    async fn link_logged_model(
        &self,
        model_id: &str,
        name: &str,
        version: i64,
    ) -> Result<(), StoreError> {
        let tags = self.logged(model_id).await?.info.tags;
        let listed = tags.iter().find(|tag| tag.key == VERSIONS_TAG);
        let listed = listed.map(|tag| tag.value.as_str());
        // Newer servers have added the version to the tag themselves.
        let Some(value) = registry::with_version(listed, name, version) else {
            return Ok(());
        };
        let body = json!({"tags": [wire::pair(VERSIONS_TAG, &value)]});
        let path = format!("logged-models/{}/tags", segment(model_id));
        let written = self.client.write::<IgnoredAny>(Method::PATCH, &path, &body);
        written
            .await
            .map(|_| ())
            .map_err(|failure| self.error(failure))
    }

    async fn version_files(&self) -> Result<Vec<VersionFiles>, StoreError> {
        self.files_of_versions().await
    }
}

impl RestStore {
    /// Searches registered models or versions, page after page.
    async fn search<T: DeserializeOwned>(
        &self,
        path: &str,
        filter: &str,
        order_by: &[&str],
        max_results: usize,
    ) -> Result<Vec<T>, StoreError> {
        if max_results == 0 {
            return Ok(Vec::new());
        }
        let query = |token: String, wanted: usize| async move {
            let size = PAGE.min(wanted).to_string();
            let mut query = vec![("max_results", size.as_str())];
            if !filter.is_empty() {
                query.push(("filter", filter));
            }
            query.extend(order_by.iter().map(|order| ("order_by", *order)));
            if !token.is_empty() {
                query.push(("page_token", &token));
            }
            self.client.get(path, &query).await
        };
        let found = all_pages(max_results, query).await;
        found.map_err(|failure| self.error(failure))
    }

    async fn logged(&self, model_id: &str) -> Result<wire::LoggedModel, StoreError> {
        let path = format!("logged-models/{}", segment(model_id));
        let found: Result<wire::OneLoggedModel, RequestError> = self.client.get(&path, &[]).await;
        match found {
            Ok(found) => Ok(found.model),
            Err(failure)
                if failure.is("RESOURCE_DOES_NOT_EXIST")
                    // A server before MLflow 3 does not have this path.
                    || matches!(failure, RequestError::Store(StoreError::Open { .. })) =>
            {
                Err(StoreError::NotFound {
                    what: format!("logged model {model_id:?}"),
                    destination: self.client.base().to_owned(),
                })
            }
            Err(failure) => Err(self.error(failure)),
        }
    }

    async fn change_model(
        &self,
        method: Method,
        path: &str,
        name: &ModelName,
        body: &Value,
    ) -> Result<(), StoreError> {
        let changed = self.client.write::<IgnoredAny>(method, path, body).await;
        changed
            .map(|_| ())
            .map_err(|failure| self.model_error(name, failure))
    }

    async fn change_version(
        &self,
        method: Method,
        path: &str,
        name: &ModelName,
        version: i64,
        mut body: Value,
    ) -> Result<(), StoreError> {
        body["name"] = name.as_str().into();
        body["version"] = version.to_string().into();
        let changed = self.client.write::<IgnoredAny>(method, path, &body).await;
        changed
            .map(|_| ())
            .map_err(|failure| self.version_error(name, version, failure))
    }

    /// Adds the aliases to versions: a server leaves them out of the results of a search.
    async fn with_aliases(
        &self,
        mut versions: Vec<ModelVersion>,
    ) -> Result<Vec<ModelVersion>, StoreError> {
        let names: BTreeSet<&str> = versions.iter().map(|it| it.name.as_str()).collect();
        let names = names.into_iter().filter_map(|name| name.parse().ok());
        let names: Vec<ModelName> = names.collect();
        let models: HashMap<String, RegisteredModel> = stream::iter(names)
            .map(|name| async move {
                match self.model(&name).await {
                    Ok(model) => Ok(Some((model.name.clone(), model))),
                    // The version has been deleted since the search.
                    Err(StoreError::NotFound { .. }) => Ok(None),
                    Err(error) => Err(error),
                }
            })
            .buffer_unordered(TOGETHER)
            .try_filter_map(|model| async move { Ok::<_, StoreError>(model) })
            .try_collect()
            .await?;
        for version in &mut versions {
            if let Some(model) = models.get(&version.name) {
                model.put_aliases(version);
            }
        }
        Ok(versions)
    }

    /// Converts a failure about a model into an error of the store. MLflow's own message has another wording in each
    /// release.
    fn model_error(&self, name: &ModelName, failure: RequestError) -> StoreError {
        let what = format!("registered model {:?}", name.as_str());
        let destination = self.client.base().to_owned();
        if failure.is("RESOURCE_DOES_NOT_EXIST") {
            StoreError::NotFound { what, destination }
        } else if is_taken(&failure) {
            StoreError::AlreadyExists { what, destination }
        } else {
            self.error(failure)
        }
    }

    fn version_error(&self, name: &ModelName, version: i64, failure: RequestError) -> StoreError {
        if failure.is("RESOURCE_DOES_NOT_EXIST") {
            return StoreError::NotFound {
                what: format!("version {version} of model {:?}", name.as_str()),
                destination: self.client.base().to_owned(),
            };
        }
        self.error(failure)
    }
}

fn is_taken(failure: &RequestError) -> bool {
    failure.is("RESOURCE_ALREADY_EXISTS") || failure.is("ALREADY_EXISTS")
}

fn pairs(tags: &[(Key, TagValue)]) -> Vec<Value> {
    tags.iter()
        .map(|(key, value)| wire::pair(key.as_str(), value.as_str()))
        .collect()
}

/// Encodes a text as one segment of a path.
fn segment(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' => escaped.push(char::from(byte)),
            other => escaped.push_str(&format!("%{other:02X}")),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_stays_one_segment_of_a_path() {
        assert_eq!(segment("m-0aF_"), "m-0aF_");
        assert_eq!(segment("../a?b#é"), "%2E%2E%2Fa%3Fb%23%C3%A9");
    }
}
