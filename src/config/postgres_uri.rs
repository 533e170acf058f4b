//! The URI of a PostgreSQL database, by the rules of SQLAlchemy and libpq.

use super::uri::{credentials, percent_decoded, percent_encoded};
use crate::net::secret::Secret;

/// A PostgreSQL database, named as SQLAlchemy and libpq name one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PostgresUri {
    shown: String,
    connects: Vec<Secret>,
    user: Option<(Secret, Option<Secret>)>,
    has_user_option: bool,
    has_place: bool,
    service: Option<String>,
    passfile: Option<String>,
    session: Session,
}

/// The kind of server that a session needs, where a URI names several: `target_session_attrs` of libpq.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Session {
    /// Any server that answers.
    #[default]
    Any,
    /// A server that takes writes.
    Writing,
    /// A server that takes no writes.
    Reading,
}

/// A host and a port, or the folder of a socket.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Host {
    name: String,
    port: String,
    is_option: bool,
}

const FORM: &str = "the form is postgresql://user:password@host:5432/database";
const PORT: &str = "the port is no number from 0 to 65535";

impl Host {
    fn parse(text: &str, is_option: bool) -> Result<Self, &'static str> {
        let (name, port) = match text.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') && !text.starts_with('/') => (host, port),
            _ => (text, ""),
        };
        if !port.is_empty() && port.parse::<u16>().is_err() {
            return Err(PORT);
        }
        Ok(Self {
            name: name.to_owned(),
            port: port.to_owned(),
            is_option,
        })
    }

    fn shown(&self) -> String {
        match self.port.as_str() {
            "" => self.name.clone(),
            port => format!("{}:{port}", self.name),
        }
    }
}

impl PostgresUri {
    /// Returns a URI for the driver of PostgreSQL for each host, completely percent-encoded, in the order in which they
    /// are tried. It has the user and the password where it names a host.
    pub fn connects(&self) -> &[Secret] {
        &self.connects
    }

    /// Returns the user and the password.
    pub fn user(&self) -> Option<&(Secret, Option<Secret>)> {
        self.user.as_ref()
    }

    /// Returns true where the URI names the user, in whatever way.
    pub(crate) fn names_user(&self) -> bool {
        self.user.is_some() || self.has_user_option
    }

    /// Returns true where the URI names a host or a database.
    pub(crate) fn names_place(&self) -> bool {
        self.has_place
    }

    /// Returns the section of the service file that completes the URI.
    pub(crate) fn service(&self) -> Option<&str> {
        self.service.as_deref()
    }

    /// Returns the file of passwords.
    pub(crate) fn passfile(&self) -> Option<&str> {
        self.passfile.as_deref()
    }

    /// Returns the kind of server that a session needs.
    pub(crate) fn session(&self) -> Session {
        self.session
    }

    /// Returns the URI without credentials.
    pub(crate) fn shown(&self) -> &str {
        &self.shown
    }

    /// Reads the rest of a URI after `postgresql:`. User and password may be percent-encoded. An `@` in a password must
    /// be percent-encoded only where another `@` follows the host.
    ///
    /// # Errors
    /// The reason why it cannot be used.
    pub(crate) fn parse(rest: &str) -> Result<Self, &'static str> {
        let rest = rest.strip_prefix("//").ok_or(FORM)?;
        let (user, place) = credentials(rest);
        let (place, options) = place.split_once('?').unwrap_or((place, ""));
        let (authority, database) = place.split_once('/').unwrap_or((place, ""));
        let decoded = |text: &str| percent_decoded(text).ok_or("it has a broken %-escape");
        let database = decoded(database)?;
        let user = match user {
            Some((user, password)) => Some((decoded(user)?, password.map(decoded).transpose()?)),
            None => None,
        };
        let of_authority = authority.split(',').filter(|host| !host.is_empty());
        let of_authority = of_authority.map(|host| Host::parse(host, false));
        let of_authority = of_authority.collect::<Result<Vec<_>, _>>()?;
        let mut found = Self {
            shown: String::new(),
            connects: Vec::new(),
            user: None,
            has_user_option: false,
            has_place: false,
            service: None,
            passfile: None,
            session: Session::Any,
        };
        let (mut of_options, mut ports, mut driver, mut shown) = (vec![], vec![], vec![], vec![]);
        let mut names_database = !database.is_empty();
        for option in options.split('&').filter(|option| !option.is_empty()) {
            let (name, value) = option.split_once('=').unwrap_or((option, ""));
            let value = decoded(value)?;
            let encoded = format!("{}={}", percent_encoded(name), percent_encoded(&value));
            // Options that name the place are shown; they hold no secret.
            if matches!(
                name,
                "host" | "hostaddr" | "port" | "dbname" | "options" | "service"
            ) {
                shown.push(encoded.clone());
            }
            match name {
                "host" => {
                    let hosts = value.split(',').map(|host| Host::parse(host, true));
                    of_options.extend(hosts.collect::<Result<Vec<_>, _>>()?);
                }
                "port" => ports.extend(value.split(',').map(str::to_owned)),
                "service" => found.service = Some(value),
                "passfile" => found.passfile = Some(value),
                "target_session_attrs" => found.session = session(&value)?,
                name => {
                    found.has_user_option |= name == "user";
                    names_database |= name == "dbname";
                    driver.push(encoded);
                }
            }
        }
        if !names_database && found.service.is_none() {
            return Err(FORM);
        }
        let mut hosts = if of_options.is_empty() {
            of_authority.clone()
        } else {
            of_options
        };
        with_ports(&mut hosts, &ports)?;
        let place = of_authority.iter().map(Host::shown).collect::<Vec<_>>();
        let path = percent_encoded(&database);
        found.shown = format!("postgresql://{}/{path}", place.join(","));
        found.shown += &query(&shown);
        found.has_place = names_database || !hosts.is_empty();
        if hosts.is_empty() {
            hosts.push(Host::parse("", false)?);
        }
        let account = account(user.as_ref());
        for host in &hosts {
            let mut options = driver.clone();
            let mut authority = String::new();
            if host.is_option {
                options.insert(0, format!("host={}", percent_encoded(&host.name)));
                if !host.port.is_empty() {
                    options.insert(1, format!("port={}", host.port));
                }
            } else if !host.name.is_empty() {
                // A URI without a host, which names a socket, has no place for a user.
                authority = format!("{account}{}", host.shown());
            }
            let connect = format!("postgresql://{authority}/{path}{}", query(&options));
            found.connects.push(Secret::from(connect));
        }
        found.user = user.map(|(user, password)| (user.into(), password.map(Secret::from)));
        Ok(found)
    }
}

/// Gives each host without a port its own of a list, or the one that counts for all.
fn with_ports(hosts: &mut Vec<Host>, ports: &[String]) -> Result<(), &'static str> {
    if ports.iter().any(|port| port.parse::<u16>().is_err()) {
        return Err(PORT);
    }
    let [first, rest @ ..] = ports else {
        return Ok(());
    };
    if hosts.is_empty() {
        // The port of the default socket.
        hosts.push(Host::parse("/var/run/postgresql", true)?);
    }
    if !rest.is_empty() && ports.len() != hosts.len() {
        return Err("the number of ports must be 1 or the number of hosts");
    }
    for (place, host) in hosts.iter_mut().enumerate() {
        if host.port.is_empty() {
            host.port = ports.get(place).unwrap_or(first).clone();
        }
    }
    Ok(())
}

fn session(text: &str) -> Result<Session, &'static str> {
    Ok(match text {
        "any" | "prefer-standby" => Session::Any,
        "read-write" | "primary" => Session::Writing,
        "read-only" | "standby" => Session::Reading,
        _ => {
            return Err(
                "target_session_attrs must be any, read-write, primary, read-only, standby or prefer-standby",
            );
        }
    })
}

fn account(user: Option<&(String, Option<String>)>) -> String {
    let Some((user, password)) = user else {
        return String::new();
    };
    let password = password.as_ref();
    let password = password.map(|it| format!(":{}", percent_encoded(it)));
    format!("{}{}@", percent_encoded(user), password.unwrap_or_default())
}

fn query(options: &[String]) -> String {
    match options {
        [] => String::new(),
        options => format!("?{}", options.join("&")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(uri: &str) -> Result<PostgresUri, &'static str> {
        PostgresUri::parse(uri.split_once(':').unwrap().1)
    }

    fn postgres_uri(uri: &str) -> (String, String) {
        let found = parsed(uri).unwrap();
        (found.shown.clone(), found.connects[0].reveal().to_owned())
    }

    #[test]
    fn several_hosts_are_tried_in_their_order() {
        for (uri, shown, connects) in [
            (
                "postgresql://u:p@a:1,b:2/db?target_session_attrs=read-write",
                "postgresql://a:1,b:2/db",
                ["postgresql://u:p@a:1/db", "postgresql://u:p@b:2/db"],
            ),
            (
                "postgresql://u@/db?host=a:1&host=b:2&sslmode=require",
                "postgresql:///db?host=a%3A1&host=b%3A2",
                [
                    "postgresql:///db?host=a&port=1&sslmode=require",
                    "postgresql:///db?host=b&port=2&sslmode=require",
                ],
            ),
            (
                "postgresql:///db?host=a,/run/b&port=1,2",
                "postgresql:///db?host=a%2C%2Frun%2Fb&port=1%2C2",
                [
                    "postgresql:///db?host=a&port=1",
                    "postgresql:///db?host=%2Frun%2Fb&port=2",
                ],
            ),
        ] {
            let found = parsed(uri).unwrap();
            assert_eq!(found.shown, shown);
            let found: Vec<_> = found.connects.iter().map(Secret::reveal).collect();
            assert_eq!(found, connects);
        }
        assert!(parsed("postgresql:///db?host=a,b,c&port=1,2").is_err());
        assert!(parsed("postgresql://a/db?target_session_attrs=best").is_err());
    }

    #[test]
    fn a_service_stands_for_a_place() {
        let found = parsed("postgresql:///?service=ml").unwrap();
        assert_eq!(found.service(), Some("ml"));
        assert!(!found.names_place() && !found.names_user());
    }

    #[test]
    fn postgres_uris_are_read_as_sqlalchemy_reads_them() {
        for (uri, shown, connect) in [
            (
                "postgresql://me:secret@host:5432/db",
                "postgresql://host:5432/db",
                "postgresql://me:secret@host:5432/db",
            ),
            (
                "postgresql+psycopg2://me:p%40s/w?o#rd@host/db",
                "postgresql://host/db",
                "postgresql://me:p%40s%2Fw%3Fo%23rd@host/db",
            ),
            (
                "postgres://me:p@ss:word@host/my%20db?sslmode=require",
                "postgresql://host/my%20db",
                "postgresql://me:p%40ss%3Aword@host/my%20db?sslmode=require",
            ),
            (
                "postgresql://me@/db?host=/var/run/postgresql&password=p",
                "postgresql:///db?host=%2Fvar%2Frun%2Fpostgresql",
                "postgresql:///db?host=%2Fvar%2Frun%2Fpostgresql&password=p",
            ),
            (
                "postgresql://h/db?options=-csearch_path%3Da@b",
                "postgresql://h/db?options=-csearch_path%3Da%40b",
                "postgresql://h/db?options=-csearch_path%3Da%40b",
            ),
            (
                "postgresql://[::1]:5433/db",
                "postgresql://[::1]:5433/db",
                "postgresql://[::1]:5433/db",
            ),
        ] {
            assert_eq!(postgres_uri(uri), (shown.to_owned(), connect.to_owned()));
        }
        for wrong in [
            "postgresql:db",
            "postgresql://h",
            "postgresql://h:port/db",
            "postgresql://u:%zz@h/db",
        ] {
            assert!(parsed(wrong).is_err(), "{wrong}");
        }
    }
}
