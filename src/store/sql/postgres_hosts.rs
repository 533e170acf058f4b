//! The servers of a PostgreSQL database, as libpq finds them: several hosts, the system's user, service and password
//! files.

use std::{collections::BTreeMap, fs, os::unix::fs::MetadataExt, path::PathBuf, time::Duration};

use sqlx::{
    Connection, PgPool, Postgres, Row,
    pool::PoolConnection,
    postgres::{PgConnectOptions, PgConnection, PgPoolOptions},
};

use crate::config::postgres_uri::{PostgresUri, Session};

/// Longest time to establish a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Number of connections: one for writing, one for queries.
const CONNECTIONS: u32 = 2;

/// A pool of connections to the first host that serves.
#[derive(Clone, Debug)]
pub(crate) struct PostgresHosts {
    pool: PgPool,
    hosts: Vec<PgConnectOptions>,
    session: Session,
}

impl PostgresHosts {
    /// Connects to the first host that answers as the session needs it.
    pub(crate) async fn open(uri: &PostgresUri) -> Result<Self, sqlx::Error> {
        let hosts = options_of(uri)?;
        let session = uri.session();
        // The pool would try an absent server until the timeout; a person who starts a script wants to know at once,
        // so one connection is tried first.
        let found = first_of(&hosts, session).await?;
        let mut pool = PgPoolOptions::new()
            .max_connections(CONNECTIONS)
            .acquire_timeout(CONNECT_TIMEOUT);
        if session != Session::Any {
            // A server that was a primary may be a standby by now.
            pool = pool
                .before_acquire(move |connection, _| Box::pin(serves(connection, session)))
                .after_connect(move |connection, _| {
                    Box::pin(async move {
                        if serves(connection, session).await? {
                            Ok(())
                        } else {
                            Err(other_session(session))
                        }
                    })
                });
        }
        Ok(Self {
            pool: pool.connect_lazy_with(found),
            hosts,
            session,
        })
    }

    /// Returns a connection; looks for another host where the present one serves no longer.
    pub(crate) async fn acquire(&self) -> Result<PoolConnection<Postgres>, sqlx::Error> {
        match self.pool.acquire().await {
            Err(_) if self.hosts.len() > 1 => {
                let found = first_of(&self.hosts, self.session).await?;
                self.pool.set_connect_options(found);
                self.pool.acquire().await
            }
            acquired => acquired,
        }
    }
}

async fn first_of(
    hosts: &[PgConnectOptions],
    session: Session,
) -> Result<PgConnectOptions, sqlx::Error> {
    let mut failed = None;
    for options in hosts {
        let tried = tokio::time::timeout(CONNECT_TIMEOUT, is_usable(options, session)).await;
        match tried.unwrap_or(Err(sqlx::Error::PoolTimedOut)) {
            Ok(()) => return Ok(options.clone()),
            // The last host's error is shown, as libpq shows it last.
            Err(error) => failed = Some(error),
        }
    }
    Err(failed.unwrap_or(sqlx::Error::PoolTimedOut))
}

async fn is_usable(options: &PgConnectOptions, session: Session) -> Result<(), sqlx::Error> {
    let mut connection = PgConnection::connect_with(options).await?;
    let is_served = serves(&mut connection, session).await?;
    connection.close().await?;
    if is_served {
        Ok(())
    } else {
        Err(other_session(session))
    }
}

/// Returns true where a server is of the kind that the session needs.
async fn serves(connection: &mut PgConnection, session: Session) -> Result<bool, sqlx::Error> {
    if session == Session::Any {
        return Ok(true);
    }
    let row = sqlx::query("SHOW transaction_read_only").fetch_one(connection);
    let is_read_only = row.await?.try_get::<String, _>(0)? == "on";
    Ok(is_read_only == (session == Session::Reading))
}

fn other_session(session: Session) -> sqlx::Error {
    let reason = match session {
        Session::Writing => {
            "the host takes no writes, and target_session_attrs asks for one that does"
        }
        _ => "the host takes writes, and target_session_attrs asks for one that takes none",
    };
    sqlx::Error::Io(std::io::Error::other(reason))
}

/// Returns the options for each host of a URI, completed by what libpq reads elsewhere.
fn options_of(uri: &PostgresUri) -> Result<Vec<PgConnectOptions>, sqlx::Error> {
    let name = uri.service().map(str::to_owned);
    let service = match name.or_else(|| std::env::var("PGSERVICE").ok()) {
        Some(name) => service(&name)?,
        None => BTreeMap::new(),
    };
    uri.connects()
        .iter()
        .map(|connect| {
            let options = connect.reveal().parse()?;
            Ok(completed(options, uri, &service))
        })
        .collect()
}

fn completed(
    mut options: PgConnectOptions,
    uri: &PostgresUri,
    service: &BTreeMap<String, String>,
) -> PgConnectOptions {
    if !uri.names_place() {
        if let Some(host) = service.get("host") {
            options = if host.starts_with('/') {
                options.socket(host)
            } else {
                options.host(host)
            };
        }
        if let Some(port) = service.get("port").and_then(|port| port.parse().ok()) {
            options = options.port(port);
        }
    }
    if options.get_database().is_none()
        && let Some(database) = service.get("dbname")
    {
        options = options.database(database);
    }
    if let Some((user, password)) = uri.user() {
        options = options.username(user.reveal());
        if let Some(password) = password {
            options = options.password(password.reveal());
        }
    } else if let Some(user) = service.get("user").filter(|_| !uri.names_user()) {
        options = options.username(user);
    } else if !uri.names_user() && std::env::var_os("PGUSER").is_none() {
        options = options.username(&user_of_the_system());
    }
    let has_password = uri.user().is_some_and(|(_, password)| password.is_some());
    if let Some(password) = service.get("password").filter(|_| !has_password) {
        options = options.password(password);
    } else if let Some(file) = uri.passfile().filter(|_| !has_password)
        && let Some(password) = in_passfile(&fs::read_to_string(file).unwrap_or_default(), &options)
    {
        options = options.password(&password);
    }
    // The server shows this name to its administrator.
    options.application_name("heimdall-tracking")
}

/// Returns the settings of a service.
fn service(name: &str) -> Result<BTreeMap<String, String>, sqlx::Error> {
    let home = std::env::var_os("HOME").map(PathBuf::from);
    let files = [
        std::env::var_os("PGSERVICEFILE").map(PathBuf::from),
        home.map(|home| home.join(".pg_service.conf")),
        std::env::var_os("PGSYSCONFDIR").map(|dir| PathBuf::from(dir).join("pg_service.conf")),
    ];
    let mut files = files.into_iter().flatten();
    let found = files.find_map(|file| section(&fs::read_to_string(file).ok()?, name));
    found.ok_or_else(|| {
        let reason = format!("no service {name:?} stands in PGSERVICEFILE or ~/.pg_service.conf");
        sqlx::Error::Configuration(reason.into())
    })
}

fn section(text: &str, name: &str) -> Option<BTreeMap<String, String>> {
    let mut found: Option<BTreeMap<String, String>> = None;
    let mut is_inside = false;
    for line in text.lines().map(str::trim) {
        if let Some(section) = line.strip_prefix('[') {
            is_inside = section.trim_end_matches(']') == name;
            if is_inside {
                found.get_or_insert_default();
            }
        } else if let (true, Some((key, value))) = (is_inside, line.split_once('=')) {
            let values = found.get_or_insert_default();
            values.insert(key.trim().to_owned(), value.trim().to_owned());
        }
    }
    found
}

/// Returns the password of the first fitting line: `host:port:database:user:password`, where `*` fits everything.
fn in_passfile(text: &str, options: &PgConnectOptions) -> Option<String> {
    let place = [
        options.get_host().to_owned(),
        options.get_port().to_string(),
        options.get_database().unwrap_or_default().to_owned(),
        options.get_username().to_owned(),
    ];
    text.lines().find_map(|line| {
        let fields = fields(line);
        let (wanted, password) = fields.split_at_checked(4)?;
        let fits = wanted.iter().zip(&place);
        let fits = fits
            .into_iter()
            .all(|(one, other)| one == "*" || one == other);
        (fits && password.len() == 1).then(|| password[0].clone())
    })
}

/// Splits a line at its colons; a backslash takes the next character as it is.
fn fields(line: &str) -> Vec<String> {
    let mut fields = vec![String::new()];
    let mut characters = line.chars();
    while let Some(it) = characters.next() {
        match it {
            ':' => fields.push(String::new()),
            _ => {
                let it = if it == '\\' {
                    characters.next()
                } else {
                    Some(it)
                };
                if let Some(field) = fields.last_mut() {
                    field.extend(it);
                }
            }
        }
    }
    fields
}

/// Returns the name of the account that runs this process, as libpq asks the system for it.
fn user_of_the_system() -> String {
    let uid = fs::metadata("/proc/self").map(|it| it.uid().to_string());
    let accounts = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let of_file = uid.ok().and_then(|uid| {
        accounts.lines().find_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next()?;
            (fields.nth(1) == Some(uid.as_str())).then(|| name.to_owned())
        })
    });
    let variables = ["USER", "LOGNAME"];
    let of_variable = || variables.iter().find_map(|name| std::env::var(name).ok());
    of_file.or_else(of_variable).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_is_a_section_of_its_file() {
        let text = "[other]\nhost=a\n[ml]\n host = b\nport=1\n";
        let found = section(text, "ml").unwrap();
        assert_eq!((found["host"].as_str(), found["port"].as_str()), ("b", "1"));
        assert_eq!(section(text, "none"), None);
    }

    #[test]
    fn the_first_line_of_a_file_of_passwords_that_fits_counts() {
        let options: PgConnectOptions = "postgresql://me@h:1/db".parse().unwrap();
        let text = "# h:1:db:me:no\nh:1:db:you:no\nh:*:db:me:a\\:b\n*:*:*:*:c\n";
        assert_eq!(in_passfile(text, &options).as_deref(), Some("a:b"));
        assert_eq!(in_passfile("h:2:db:me:no\n", &options), None);
    }

    #[test]
    fn the_account_of_the_process_has_a_name() {
        assert_ne!(user_of_the_system(), "");
    }
}
