//! Lists that a server sends in pages.

use serde::Deserialize;

use super::client::RequestError;

/// A page of a list. Each kind of list has its items under a name of its own.
#[derive(Deserialize)]
pub(crate) struct ListPage<T> {
    #[serde(
        default = "Vec::new",
        alias = "experiments",
        alias = "metrics",
        alias = "model_versions",
        alias = "models",
        alias = "registered_models",
        alias = "runs"
    )]
    pub items: Vec<T>,
    #[serde(default)]
    next_page_token: String,
}

/// Queries page after page until the list ends or has `limit` items, and returns the items. `query` gets the token of
/// the page and the number of items that are still wanted.
pub(crate) async fn all_pages<T, F>(
    limit: usize,
    query: impl Fn(String, usize) -> F,
) -> Result<Vec<T>, RequestError>
where
    F: Future<Output = Result<ListPage<T>, RequestError>>,
{
    let mut found = Vec::new();
    let mut token = String::new();
    loop {
        let page = query(token, limit - found.len()).await?;
        found.extend(page.items);
        if page.next_page_token.is_empty() || found.len() >= limit {
            return Ok(found);
        }
        token = page.next_page_token;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn pages_are_queried_until_the_list_ends_or_is_long_enough() {
        for (limit, expected) in [
            (usize::MAX, vec![1, 2, 3]),
            (2, vec![1, 2]),
            (1, vec![1, 2]),
        ] {
            let query = |token: String, _| {
                let page = match token.as_str() {
                    "" => r#"{"runs": [1, 2], "next_page_token": "a"}"#,
                    "a" => r#"{"next_page_token": "b"}"#,
                    _ => r#"{"model_versions": [3]}"#,
                };
                std::future::ready(Ok(serde_json::from_str(page).unwrap()))
            };
            let found: Vec<u64> = all_pages(limit, query).await.unwrap();
            assert_eq!(found, expected);
        }
    }
}
