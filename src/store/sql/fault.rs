//! The causes of a driver's errors.

/// The cause of a driver's error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The database cannot be reached or cannot take anything now.
    Unavailable,
    /// The password or the user is wrong.
    Unauthenticated,
    /// The user does not have the permission.
    Forbidden,
    /// The record or the query is wrong.
    Record,
}

impl Fault {
    /// Sorts an error by SQLSTATE (PostgreSQL) or by the kind of constraint (SQLite).
    pub(crate) fn of(error: &sqlx::Error) -> Self {
        use sqlx::error::ErrorKind::{
            CheckViolation, ForeignKeyViolation, NotNullViolation, UniqueViolation,
        };
        let Some(error) = error.as_database_error() else {
            return match error {
                sqlx::Error::Encode(_)
                | sqlx::Error::Decode(_)
                | sqlx::Error::ColumnDecode { .. } => Self::Record,
                _ => Self::Unavailable,
            };
        };
        if matches!(
            error.kind(),
            CheckViolation | ForeignKeyViolation | NotNullViolation | UniqueViolation
        ) {
            return Self::Record;
        }
        if error
            .try_downcast_ref::<sqlx::postgres::PgDatabaseError>()
            .is_none()
        {
            return Self::Unavailable;
        }
        let code = error.code().unwrap_or_default();
        match code.get(..2) {
            Some("28") => Self::Unauthenticated,
            // These classes are invalid data, violated constraints and exceeded limits of the server.
            Some("22" | "23" | "54") => Self::Record,
            _ if code == "42501" => Self::Forbidden,
            _ => Self::Unavailable,
        }
    }
}

/// Returns true where only another name, user or database in the URI helps.
pub(crate) fn is_misconfigured(error: &sqlx::Error) -> bool {
    match error {
        error if crate::store::error::is_certificate_refused(error) => true,
        sqlx::Error::Configuration(_) | sqlx::Error::Tls(_) => true,
        sqlx::Error::Database(error) => {
            let code = error.code().unwrap_or_default();
            if error
                .try_downcast_ref::<sqlx::postgres::PgDatabaseError>()
                .is_some()
            {
                code.starts_with("28") || code == "3D000" || code == "42501"
            } else {
                !is_passing(&code)
            }
        }
        _ => false,
    }
}

/// Returns true for SQLite's codes of a state that may pass: busy, locked, out of memory, interrupted, an I/O error, a
/// full disk, a lock protocol that another process has broken.
fn is_passing(code: &str) -> bool {
    // The last byte of an extended code is the code itself.
    code.parse::<u32>()
        .is_ok_and(|code| matches!(code & 0xFF, 5 | 6 | 7 | 9 | 10 | 13 | 15))
}
