//! The schema of MLflow 2.22.4.
//! Written by `scripts/schema_from_mlflow.py`.

use super::{*, Action::{OnDeleteCascade, OnUpdateCascade}};

pub(crate) static SCHEMA: Schema = Schema {
    mlflow_version: "2.22.4",
    revision: "0584bdc529eb",
    tables: &[
        Table {
            name: "alembic_version",
            columns: &[
                string("version_num", 32).not_null(),
            ],
            constraints: &[
                primary_key("alembic_version_pkc", &["version_num"]),
            ],
            indexes: &[],
        },
        Table {
            name: "experiments",
            columns: &[
                serial("experiment_id").not_null(),
                string("name", 256).not_null(),
                string("artifact_location", 256),
                string("lifecycle_stage", 32),
                bigint("creation_time"),
                bigint("last_update_time"),
            ],
            constraints: &[
                primary_key("experiment_pk", &["experiment_id"]),
                unique(None, &["name"]),
                check(Some("experiments_lifecycle_stage"), "lifecycle_stage IN ('active', 'deleted')"),
            ],
            indexes: &[],
        },
        Table {
            name: "datasets",
            columns: &[
                string("dataset_uuid", 36).not_null(),
                integer("experiment_id").not_null(),
                string("name", 500).not_null(),
                string("digest", 36).not_null(),
                string("dataset_source_type", 36).not_null(),
                text("dataset_source").not_null(),
                text("dataset_schema"),
                text("dataset_profile"),
            ],
            constraints: &[
                primary_key("dataset_pk", &["experiment_id", "name", "digest"]),
                foreign_key(Some("fk_datasets_experiment_id_experiments"), &["experiment_id"], "experiments", &["experiment_id"], &[OnDeleteCascade]),
            ],
            indexes: &[
                index("index_datasets_dataset_uuid", &["dataset_uuid"]),
                index("index_datasets_experiment_id_dataset_source_type", &["experiment_id", "dataset_source_type"]),
            ],
        },
        Table {
            name: "experiment_tags",
            columns: &[
                string("key", 250).not_null(),
                string("value", 5000),
                integer("experiment_id").not_null(),
            ],
            constraints: &[
                primary_key("experiment_tag_pk", &["key", "experiment_id"]),
                foreign_key(None, &["experiment_id"], "experiments", &["experiment_id"], &[]),
            ],
            indexes: &[],
        },
        Table {
            name: "input_tags",
            columns: &[
                string("input_uuid", 36).not_null(),
                string("name", 255).not_null(),
                string("value", 500).not_null(),
            ],
            constraints: &[
                primary_key("input_tags_pk", &["input_uuid", "name"]),
            ],
            indexes: &[],
        },
        Table {
            name: "inputs",
            columns: &[
                string("input_uuid", 36).not_null(),
                string("source_type", 36).not_null(),
                string("source_id", 36).not_null(),
                string("destination_type", 36).not_null(),
                string("destination_id", 36).not_null(),
            ],
            constraints: &[
                primary_key("inputs_pk", &["source_type", "source_id", "destination_type", "destination_id"]),
            ],
            indexes: &[
                index("index_inputs_destination_type_destination_id_source_type", &["destination_type", "destination_id", "source_type"]),
                index("index_inputs_input_uuid", &["input_uuid"]),
            ],
        },
        Table {
            name: "runs",
            columns: &[
                string("run_uuid", 32).not_null(),
                string("name", 250),
                string("source_type", 20),
                string("source_name", 500),
                string("entry_point_name", 50),
                string("user_id", 256),
                string("status", 9),
                bigint("start_time"),
                bigint("end_time"),
                string("source_version", 50),
                string("lifecycle_stage", 20),
                string("artifact_uri", 200),
                integer("experiment_id"),
                bigint("deleted_time"),
            ],
            constraints: &[
                primary_key("run_pk", &["run_uuid"]),
                foreign_key(None, &["experiment_id"], "experiments", &["experiment_id"], &[]),
                check(None, "status IN ('SCHEDULED', 'FAILED', 'FINISHED', 'RUNNING', 'KILLED')"),
                check(Some("runs_lifecycle_stage"), "lifecycle_stage IN ('active', 'deleted')"),
                check(Some("source_type"), "source_type IN ('NOTEBOOK', 'JOB', 'LOCAL', 'UNKNOWN', 'PROJECT')"),
            ],
            indexes: &[],
        },
        Table {
            name: "latest_metrics",
            columns: &[
                string("key", 250).not_null(),
                float("value").not_null(),
                bigint("timestamp"),
                bigint("step").not_null(),
                boolean("is_nan").not_null(),
                string("run_uuid", 32).not_null(),
            ],
            constraints: &[
                primary_key("latest_metric_pk", &["key", "run_uuid"]),
                foreign_key(None, &["run_uuid"], "runs", &["run_uuid"], &[]),
                zero_or_one("is_nan"),
            ],
            indexes: &[
                index("index_latest_metrics_run_uuid", &["run_uuid"]),
            ],
        },
        Table {
            name: "metrics",
            columns: &[
                string("key", 250).not_null(),
                float("value").not_null(),
                bigint("timestamp").not_null(),
                string("run_uuid", 32).not_null(),
                bigint("step").default("0").not_null(),
                boolean("is_nan").default("0").not_null(),
            ],
            constraints: &[
                primary_key("metric_pk", &["key", "timestamp", "step", "run_uuid", "value", "is_nan"]),
                foreign_key(None, &["run_uuid"], "runs", &["run_uuid"], &[]),
                zero_or_one("is_nan"),
            ],
            indexes: &[
                index("index_metrics_run_uuid", &["run_uuid"]),
            ],
        },
        Table {
            name: "registered_models",
            columns: &[
                string("name", 256).not_null(),
                bigint("creation_time"),
                bigint("last_updated_time"),
                string("description", 5000),
            ],
            constraints: &[
                primary_key("registered_model_pk", &["name"]),
                unique(None, &["name"]),
            ],
            indexes: &[],
        },
        Table {
            name: "model_versions",
            columns: &[
                string("name", 256).not_null(),
                integer("version").not_null(),
                bigint("creation_time"),
                bigint("last_updated_time"),
                string("description", 5000),
                string("user_id", 256),
                string("current_stage", 20),
                string("source", 500),
                string("run_id", 32),
                string("status", 20),
                string("status_message", 500),
                string("run_link", 500),
                string("storage_location", 500),
            ],
            constraints: &[
                primary_key("model_version_pk", &["name", "version"]),
                foreign_key(None, &["name"], "registered_models", &["name"], &[OnUpdateCascade]),
            ],
            indexes: &[],
        },
        Table {
            name: "model_version_tags",
            columns: &[
                string("key", 250).not_null(),
                string("value", 5000),
                string("name", 256).not_null(),
                integer("version").not_null(),
            ],
            constraints: &[
                primary_key("model_version_tag_pk", &["key", "name", "version"]),
                foreign_key(None, &["name", "version"], "model_versions", &["name", "version"], &[OnUpdateCascade]),
            ],
            indexes: &[],
        },
        Table {
            name: "params",
            columns: &[
                string("key", 250).not_null(),
                string("value", 8000).not_null(),
                string("run_uuid", 32).not_null(),
            ],
            constraints: &[
                primary_key("param_pk", &["key", "run_uuid"]),
                foreign_key(None, &["run_uuid"], "runs", &["run_uuid"], &[]),
            ],
            indexes: &[
                index("index_params_run_uuid", &["run_uuid"]),
            ],
        },
        Table {
            name: "registered_model_aliases",
            columns: &[
                string("alias", 256).not_null(),
                integer("version").not_null(),
                string("name", 256).not_null(),
            ],
            constraints: &[
                primary_key("registered_model_alias_pk", &["name", "alias"]),
                foreign_key(Some("registered_model_alias_name_fkey"), &["name"], "registered_models", &["name"], &[OnDeleteCascade, OnUpdateCascade]),
            ],
            indexes: &[],
        },
        Table {
            name: "registered_model_tags",
            columns: &[
                string("key", 250).not_null(),
                string("value", 5000),
                string("name", 256).not_null(),
            ],
            constraints: &[
                primary_key("registered_model_tag_pk", &["key", "name"]),
                foreign_key(None, &["name"], "registered_models", &["name"], &[OnUpdateCascade]),
            ],
            indexes: &[],
        },
        Table {
            name: "tags",
            columns: &[
                string("key", 250).not_null(),
                string("value", 8000),
                string("run_uuid", 32).not_null(),
            ],
            constraints: &[
                primary_key("tag_pk", &["key", "run_uuid"]),
                foreign_key(None, &["run_uuid"], "runs", &["run_uuid"], &[]),
            ],
            indexes: &[
                index("index_tags_run_uuid", &["run_uuid"]),
            ],
        },
        Table {
            name: "trace_info",
            columns: &[
                string("request_id", 50).not_null(),
                integer("experiment_id").not_null(),
                bigint("timestamp_ms").not_null(),
                bigint("execution_time_ms"),
                string("status", 50).not_null(),
            ],
            constraints: &[
                primary_key("trace_info_pk", &["request_id"]),
                foreign_key(Some("fk_trace_info_experiment_id"), &["experiment_id"], "experiments", &["experiment_id"], &[]),
            ],
            indexes: &[
                index("index_trace_info_experiment_id_timestamp_ms", &["experiment_id", "timestamp_ms"]),
            ],
        },
        Table {
            name: "trace_request_metadata",
            columns: &[
                string("key", 250).not_null(),
                string("value", 8000),
                string("request_id", 50).not_null(),
            ],
            constraints: &[
                primary_key("trace_request_metadata_pk", &["key", "request_id"]),
                foreign_key(Some("fk_trace_request_metadata_request_id"), &["request_id"], "trace_info", &["request_id"], &[OnDeleteCascade]),
            ],
            indexes: &[
                index("index_trace_request_metadata_request_id", &["request_id"]),
            ],
        },
        Table {
            name: "trace_tags",
            columns: &[
                string("key", 250).not_null(),
                string("value", 8000),
                string("request_id", 50).not_null(),
            ],
            constraints: &[
                primary_key("trace_tag_pk", &["key", "request_id"]),
                foreign_key(Some("fk_trace_tags_request_id"), &["request_id"], "trace_info", &["request_id"], &[OnDeleteCascade]),
            ],
            indexes: &[
                index("index_trace_tags_request_id", &["request_id"]),
            ],
        },
    ],
    seeds: &[
        Seed { table: "alembic_version", values: &[("version_num", "0584bdc529eb")] },
    ],
};
