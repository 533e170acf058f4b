use std::future::Future;

use super::store::SqlStore;
use crate::{
    config::{tracker::FreshSchema, uri::Destination},
    journal::record::{Record, RunStart},
    mlflow::{
        key::Key,
        model::{Stage, TagValue},
        rewind::Rewind,
        run::{LifecycleStage, RunId, RunStatus},
    },
    store::{
        error::StoreError,
        registry::{ModelRegistry, NewVersion},
        tracking::TrackingStore,
    },
};

fn block_on<T>(test: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(test)
}

async fn open(dir: &tempfile::TempDir) -> SqlStore {
    SqlStore::open(
        &Destination::Sqlite(dir.path().join("mlflow.db")),
        &FreshSchema::Newest,
    )
    .await
    .unwrap()
}

fn start(run: RunId) -> Record {
    Record::RunStarted(RunStart {
        run,
        experiment: "e".into(),
        artifact_location: Some("/artifacts".into()),
        name: "n".into(),
        user: "u".into(),
        start_time: 1,
    })
}

fn key(text: &str) -> Key {
    Key::parse("key", text).unwrap()
}

fn metric(run: RunId, step: i64, value: f64) -> Record {
    Record::Metrics {
        run,
        step,
        timestamp: 5,
        values: vec![(key("val/loss"), value)],
    }
}

fn param(run: RunId, value: &str) -> Record {
    Record::Params {
        run,
        values: vec![(key("lr"), value.into())],
    }
}

#[test]
fn a_batch_written_again_changes_nothing() {
    block_on(async {
        let dir = tempfile::tempdir().unwrap();
        let store = open(&dir).await;
        let run = RunId::random();
        let end = Record::RunEnded {
            run,
            status: RunStatus::Finished,
            end_time: 9,
        };
        let tags = Record::Tags {
            run,
            values: vec![(key("t"), "v".into())],
        };
        let batch = [
            start(run),
            param(run, "1"),
            tags,
            metric(run, 0, 0.5),
            metric(run, 1, 0.25),
            end,
        ];
        let batch: Vec<&Record> = batch.iter().collect();
        store.write(&batch).await.unwrap();
        let first = store.run(&run.to_string()).await.unwrap();
        store.write(&batch).await.unwrap();
        assert_eq!(store.run(&run.to_string()).await.unwrap(), first);
        let points = store.metric_history(&run.to_string(), "val/loss").await;
        assert_eq!(points.unwrap().len(), 2);
        assert_eq!(
            (first.status.as_str(), first.end_time),
            ("FINISHED", Some(9))
        );
        assert_eq!(first.metrics["val/loss"], 0.25);
    });
}

#[test]
fn a_batch_with_a_refused_record_leaves_nothing_behind() {
    block_on(async {
        let dir = tempfile::tempdir().unwrap();
        let store = open(&dir).await;
        let run = RunId::random();
        store.write(&[&start(run), &param(run, "1")]).await.unwrap();
        let error = store
            .write(&[&metric(run, 0, 0.5), &param(run, "2")])
            .await
            .unwrap_err();
        assert!(
            matches!(&error, StoreError::ParamChanged { old, new, .. } if old == "1" && new == "2")
        );
        assert!(!error.is_transient());
        assert!(
            store
                .run(&run.to_string())
                .await
                .unwrap()
                .metrics
                .is_empty()
        );
    });
}

#[test]
fn nothing_is_written_to_runs_that_are_unknown_or_deleted() {
    block_on(async {
        let dir = tempfile::tempdir().unwrap();
        let store = open(&dir).await;
        let run = RunId::random();
        let unknown = store.write(&[&metric(run, 0, 0.5)]).await.unwrap_err();
        assert!(matches!(unknown, StoreError::NotFound { .. }));
        store.write(&[&start(run)]).await.unwrap();
        store
            .set_run_stage(&run.to_string(), LifecycleStage::Deleted)
            .await
            .unwrap();
        let deleted = store.write(&[&metric(run, 0, 0.5)]).await.unwrap_err();
        assert!(matches!(deleted, StoreError::RunDeleted { .. }));
    });
}

#[test]
fn the_latest_point_has_the_greatest_step_then_time_then_value() {
    block_on(async {
        let dir = tempfile::tempdir().unwrap();
        let store = open(&dir).await;
        let run = RunId::random();
        store
            .write(&[&start(run), &metric(run, 2, 0.1), &metric(run, -1, 9.0)])
            .await
            .unwrap();
        let latest = async || store.run(&run.to_string()).await.unwrap().metrics["val/loss"];
        assert_eq!(latest().await, 0.1);
        store.write(&[&metric(run, 1, 7.0)]).await.unwrap();
        assert_eq!(latest().await, 0.1, "an earlier step");
        store.write(&[&metric(run, 2, 0.3)]).await.unwrap();
        assert_eq!(
            latest().await,
            0.3,
            "the same step and time, a greater value"
        );
        store.write(&[&metric(run, 3, f64::NAN)]).await.unwrap();
        assert!(latest().await.is_nan());
    });
}

#[test]
fn opening_twice_at_once_makes_one_database() {
    block_on(async {
        let dir = tempfile::tempdir().unwrap();
        let (first, second) = tokio::join!(open(&dir), open(&dir));
        let (a, b) = tokio::join!(
            first.get_or_create_experiment("e", None),
            second.get_or_create_experiment("e", None)
        );
        assert_eq!(a.unwrap(), b.unwrap());
    });
}

#[test]
fn a_run_whose_process_died_fails_whatever_others_have_set() {
    block_on(async {
        let dir = tempfile::tempdir().unwrap();
        let store = open(&dir).await;
        let (open_run, set_by_others) = (RunId::random(), RunId::random());
        let end = Record::RunEnded {
            run: set_by_others,
            status: RunStatus::Finished,
            end_time: 9,
        };
        store
            .write(&[&start(open_run), &start(set_by_others), &end])
            .await
            .unwrap();
        for run in [open_run, set_by_others] {
            store.fail_run(&run.to_string(), 7).await.unwrap();
        }
        let status = async |run: RunId| {
            let info = store.run(&run.to_string()).await.unwrap();
            (info.status, info.end_time)
        };
        assert_eq!(status(open_run).await, ("FAILED".into(), Some(7)));
        assert_eq!(status(set_by_others).await, ("FAILED".into(), Some(7)));
    });
}

#[test]
fn versions_of_a_model_count_up_and_take_stages() {
    block_on(async {
        let dir = tempfile::tempdir().unwrap();
        let store = open(&dir).await;
        let version = NewVersion {
            name: "m".parse().unwrap(),
            source: "/models/m".into(),
            location: None,
            run_id: None,
            model_id: None,
            description: String::new(),
            tags: vec![(
                key("accuracy"),
                TagValue::parse("accuracy", "0.9".into()).unwrap(),
            )],
        };
        for number in [1, 2] {
            let created = store.create_version(&version).await.unwrap();
            assert_eq!((created.version, created.stage.as_str()), (number, "None"));
            assert_eq!(created.tags["accuracy"], "0.9");
        }
        store
            .set_stage(&version.name, 2, Stage::Production, false)
            .await
            .unwrap();
        store
            .set_stage(&version.name, 1, Stage::Production, true)
            .await
            .unwrap();
        let archived = store.version(&version.name, 2).await.unwrap();
        assert_eq!(archived.stage, "Archived");
        let missing = store
            .set_stage(&version.name, 3, Stage::Production, true)
            .await
            .unwrap_err();
        assert!(
            missing.to_string().contains("version 3 of model \"m\""),
            "{missing}"
        );
        let kept = store.version(&version.name, 1).await.unwrap();
        assert_eq!(kept.stage, "Production");
    });
}

#[test]
fn a_file_that_is_no_mlflow_database_is_refused_and_left_alone() {
    block_on(async {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notes.db");
        std::fs::write(&path, "not a database at all, just some text").unwrap();
        let error = SqlStore::open(&Destination::Sqlite(path.clone()), &FreshSchema::Newest)
            .await
            .unwrap_err();
        assert!(matches!(error, StoreError::Open { .. }), "{error}");
        assert!(
            std::fs::read_to_string(path)
                .unwrap()
                .starts_with("not a database")
        );
    });
}

#[test]
fn a_rewind_deletes_what_was_before_it_once() {
    block_on(async {
        let dir = tempfile::tempdir().unwrap();
        let store = open(&dir).await;
        let run = RunId::random();
        let rewind = Rewind {
            id: 7,
            step: 2,
            at: 0,
        };
        let rewound = Record::RunRewound { run, rewind };
        let steps = async || {
            let history = store.metric_history(&run.to_string(), "val/loss").await;
            let mut steps: Vec<i64> = history.unwrap().iter().map(|point| point.step).collect();
            steps.sort_unstable();
            steps
        };
        // Points of the same batch that come before it are deleted as well.
        let (before, after) = (metric(run, 2, 0.1), metric(run, 3, 0.2));
        let first = metric(run, 1, 0.5);
        let batch = [&start(run), &first, &before, &rewound, &after];
        store.write(&batch).await.unwrap();
        assert_eq!(steps().await, [1, 3]);
        // Another process has recorded this one; the delivery then repeats the batch.
        store.write(&[&metric(run, 4, 0.3)]).await.unwrap();
        store.write(&batch).await.unwrap();
        assert_eq!(steps().await, [1, 3, 4]);
        let applied = store.applied_rewinds(&run.to_string()).await.unwrap();
        assert!(applied.has(&rewind));
        assert_eq!(
            store.run(&run.to_string()).await.unwrap().metrics["val/loss"],
            0.3
        );
        let again = Rewind { id: 8, ..rewind };
        let again = Record::RunRewound { run, rewind: again };
        store.write(&[&again]).await.unwrap();
        assert_eq!(steps().await, [1]);
        assert_eq!(
            store.run(&run.to_string()).await.unwrap().metrics["val/loss"],
            0.5
        );
    });
}
