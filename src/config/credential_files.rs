//! Files in which people keep the credentials of tracking servers: MLflow's own and `.netrc`.

use std::{fs, path::PathBuf};

use crate::net::secret::Secret;

/// A user and a password.
pub(crate) type Account = (Secret, Secret);

/// Reads MLflow's credentials file, `~/.mlflow/credentials`: `mlflow_tracking_username` and `mlflow_tracking_password`
/// in the section `[mlflow]`.
pub(crate) fn of_mlflow(variable: &impl Fn(&str) -> Option<String>) -> Option<Account> {
    let path = PathBuf::from(variable("HOME")?).join(".mlflow/credentials");
    in_section(&fs::read_to_string(path).ok()?)
}

/// Returns the content of the `.netrc` file: that of `NETRC`, else the one in the home folder.
pub(crate) fn netrc(variable: &impl Fn(&str) -> Option<String>) -> Option<Secret> {
    let path = match variable("NETRC") {
        Some(path) => PathBuf::from(path),
        None => PathBuf::from(variable("HOME")?).join(".netrc"),
    };
    fs::read_to_string(path).ok().map(Secret::from)
}

fn in_section(text: &str) -> Option<Account> {
    let (mut is_inside, mut user, mut password) = (false, None, None);
    for line in text.lines().map(str::trim) {
        if line.starts_with('[') {
            is_inside = line == "[mlflow]";
        } else if let (true, Some((name, value))) = (is_inside, line.split_once(['=', ':'])) {
            let value = Some(Secret::from(value.trim().to_owned()));
            match name.trim().to_ascii_lowercase().as_str() {
                "mlflow_tracking_username" => user = value,
                "mlflow_tracking_password" => password = value,
                _ => {}
            }
        }
    }
    user.zip(password)
}

/// Returns the account for a host in the content of a `.netrc` file: that of the host, else the default one.
pub(crate) fn of_host(netrc: &Secret, host: &str) -> Option<Account> {
    let mut words = netrc.reveal().split_whitespace();
    let (mut default, mut is_for_host, mut is_default) = (None, false, false);
    let (mut user, mut password) = (None, None);
    while let Some(word) = words.next() {
        match word {
            "machine" => {
                is_for_host = words.next() == Some(host);
                is_default = false;
                (user, password) = (None, None);
            }
            "default" => {
                (is_for_host, is_default) = (false, true);
                (user, password) = (None, None);
            }
            "login" => user = words.next(),
            "password" => password = words.next(),
            _ => {}
        }
        if let (Some(user), Some(password)) = (user, password) {
            let account = || {
                (
                    Secret::from(user.to_owned()),
                    Secret::from(password.to_owned()),
                )
            };
            if is_for_host {
                return Some(account());
            }
            if is_default && default.is_none() {
                default = Some(account());
            }
        }
    }
    default
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(account: Option<Account>) -> Option<(String, String)> {
        account.map(|(user, password)| (user.reveal().to_owned(), password.reveal().to_owned()))
    }

    fn pair(user: &str, password: &str) -> Option<(String, String)> {
        Some((user.to_owned(), password.to_owned()))
    }

    #[test]
    fn the_account_of_the_section_mlflow_is_found() {
        let text = "[other]\nmlflow_tracking_username = x\n[mlflow]\n\
                    mlflow_tracking_username = me\nmlflow_tracking_password = a=b\n";
        assert_eq!(shown(in_section(text)), pair("me", "a=b"));
        assert_eq!(
            shown(in_section("[mlflow]\nmlflow_tracking_username = me")),
            None
        );
    }

    #[test]
    fn a_host_has_its_own_account_or_the_default_one() {
        let text = "machine a login u password p\nmachine b\n  login v\n  password q\ndefault login d password r\n";
        let netrc = Secret::from(text.to_owned());
        assert_eq!(shown(of_host(&netrc, "b")), pair("v", "q"));
        assert_eq!(shown(of_host(&netrc, "c")), pair("d", "r"));
        let other = Secret::from("machine a login u password p".to_owned());
        assert_eq!(shown(of_host(&other, "b")), None);
    }
}
