//! Passwords, tokens and keys in texts that users write: they are masked before anything is recorded.
//!
//! Masks too much rather than too little: everything that looks like a secret counts as one.

use std::sync::LazyLock;

use regex_lite::{Captures, Regex};

/// Text that replaces a secret.
const MASK: &str = "***";

/// Words in the name of a secret. The plural `tokens` is not among them, because language models count tokens.
const SECRET_WORDS: [&str; 14] = [
    "auth",
    "authorization",
    "bearer",
    "credential",
    "credentials",
    "pass",
    "passcode",
    "passphrase",
    "passwd",
    "password",
    "pw",
    "pwd",
    "secret",
    "token",
];
/// Words that make a name secret where they stand at its end.
const SECRET_ENDINGS: [&str; 9] = [
    "cookie",
    "cookies",
    "key",
    "keys",
    "sas",
    "session",
    "sessionid",
    "sig",
    "signature",
];
/// Options whose value may be `user:password`.
const ACCOUNT_OPTIONS: [&str; 3] = ["-u", "--user", "--proxy-user"];
/// Parts that make a name secret wherever they occur in it.
const SECRET_PARTS: [&str; 10] = [
    "accesskey",
    "apikey",
    "authkey",
    "authtoken",
    "password",
    "passwd",
    "privatekey",
    "secret",
    "credential",
    "accesstoken",
];

/// Compiles a pattern, once; the patterns are constants.
#[expect(clippy::expect_used, reason = "a test compiles each of them")]
fn pattern(pattern: &str) -> Regex {
    Regex::new(pattern).expect("the pattern is valid")
}

/// `scheme://user:password@host`: a password may contain `/` and `@`, so everything up to the last `@` is masked.
static URL: LazyLock<Regex> =
    LazyLock::new(|| pattern(r#"(://)(?:[^\s/?#@:"']*:[^\s"']*|[^\s/?#@"']*)@"#));
/// `user:password@host`; behind a scheme there are two slashes.
static ACCOUNT: LazyLock<Regex> = LazyLock::new(|| {
    pattern(r#"(^|[\s="',;(])[\w.+-]+:(?:[^\s@"'/]|/[^\s@"'/])[^\s@"']*(?:@[^\s@"']+)*@(\S)"#)
});
/// `Authorization: Bearer …`
static HEADER: LazyLock<Regex> = LazyLock::new(|| {
    pattern(r#"(?i)(\bauthorization["']?\s*[:=]\s*["']?\w+|\bbearer)(\s+)[^\s"',;]+"#)
});
/// Tokens that are recognised by their form.
static TOKEN: LazyLock<Regex> = LazyLock::new(|| {
    pattern(concat!(
        r"\b(?:gh[pousr]_\w{20,}|github_pat_\w{20,}|glpat-[\w-]{16,}|hf_[A-Za-z0-9]{20,}|sk-[\w-]{16,}|",
        r"xox[abeoprs]-[\w-]{10,}|(?:AKIA|ASIA)[A-Z0-9]{16}|AIza[\w-]{30,}|npm_\w{30,}|pypi-[\w-]{30,}|",
        r"dapi[0-9a-f]{32}|eyJ[\w-]{8,}\.[\w-]{8,}(?:\.[\w-]*)?)"
    ))
});
/// A private key, up to its end or to the place where the text is cut.
static PRIVATE_KEY: LazyLock<Regex> = LazyLock::new(|| {
    pattern(r"-----BEGIN ([A-Z ]*)PRIVATE KEY-----(?s:.*?)(?:-----END [A-Z ]*PRIVATE KEY-----|\z)")
});
/// A text in quotes that is assigned to a name, in code and in JSON.
static QUOTED: LazyLock<Regex> = LazyLock::new(|| {
    pattern(r#"([\w.\-]+)(["']?\]?\s*(?::=|[:=])\s*[rbfuRBFU]{0,2})("[^"\n]*"|'[^'\n]*')"#)
});
/// A bare value that is assigned to a name, in YAML, INI, shell scripts and the queries of URLs.
static BARE: LazyLock<Regex> = LazyLock::new(|| pattern(r#"([\w.\-]+)(\s*[:=]\s*)([^\s"'&;,]+)"#));

/// Returns true where a value of this name must be kept secret: `--db-password`, `authToken`, `WANDB_API_KEY`.
pub(crate) fn is_secret_name(name: &str) -> bool {
    let mut words: Vec<String> = vec![String::new()];
    let mut last_lower = false;
    for c in name.chars() {
        if !c.is_alphanumeric() {
            words.push(String::new());
        } else {
            if c.is_uppercase() && last_lower {
                words.push(String::new());
            }
            if let Some(word) = words.last_mut() {
                word.extend(c.to_lowercase());
            }
        }
        last_lower = c.is_lowercase();
    }
    let together = words.concat();
    let last = words.iter().rfind(|word| !word.is_empty());
    last.is_some_and(|word| SECRET_ENDINGS.contains(&word.as_str()))
        || words
            .iter()
            .any(|word| SECRET_WORDS.contains(&word.as_str()))
        || SECRET_PARTS.iter().any(|part| together.contains(part))
}

/// Masks the arguments of a program. Leaves out code given by `-c`, which may contain anything.
pub(crate) fn masked_arguments(arguments: &[String]) -> Vec<String> {
    let mut masked = Vec::with_capacity(arguments.len());
    let mut hide_next = false;
    // Options of the interpreter come before the script.
    let mut before_script = true;
    for (place, argument) in arguments.iter().enumerate() {
        if std::mem::take(&mut hide_next) && !argument.starts_with("--") {
            masked.push(MASK.to_owned());
            continue;
        }
        let is_option = argument.starts_with('-') && argument.len() > 1;
        if before_script && place > 0 {
            if is_option && !argument.starts_with("--") && argument.ends_with('c') {
                masked.push(argument.clone());
                masked.push("…".to_owned());
                masked.extend(masked_arguments_of_script(arguments.get(place + 2..)));
                return masked;
            }
            before_script = is_option;
        }
        hide_next = is_option && !argument.contains('=') && is_secret_name(argument);
        let before = place.checked_sub(1).and_then(|place| arguments.get(place));
        let is_account = before.is_some_and(|it| ACCOUNT_OPTIONS.contains(&it.as_str()));
        masked.push(match argument.split_once(':') {
            Some((user, password)) if is_account && !password.is_empty() => {
                format!("{user}:{MASK}")
            }
            _ => masked_argument(argument),
        });
    }
    masked
}

fn masked_arguments_of_script(arguments: Option<&[String]>) -> Vec<String> {
    let mut with_script = vec![String::new(), String::new()];
    with_script.extend_from_slice(arguments.unwrap_or_default());
    masked_arguments(&with_script).split_off(2)
}

fn masked_argument(argument: &str) -> String {
    match argument.split_once('=') {
        Some((name, value)) if !value.is_empty() && is_secret_name(name) => {
            format!("{name}={MASK}")
        }
        _ => {
            let text = masked_text(argument, true);
            ACCOUNT.replace_all(&text, "${1}***@${2}").into_owned()
        }
    }
}

/// Masks the credentials in a URL.
pub(crate) fn masked_url(url: &str) -> String {
    masked_argument(url)
}

/// Masks a text. With `bare`, values without quotes count as values; otherwise they count as code.
pub(crate) fn masked_text(text: &str, bare: bool) -> String {
    let of_secret = |found: &Captures<'_>, masked: &str| {
        if is_secret_name(&found[1]) {
            format!("{}{}{masked}", &found[1], &found[2])
        } else {
            found[0].to_owned()
        }
    };
    let text = PRIVATE_KEY.replace_all(text, "-----BEGIN ${1}PRIVATE KEY-----***");
    let text = URL.replace_all(&text, "${1}***@");
    let text = TOKEN.replace_all(&text, MASK);
    let text = HEADER.replace_all(&text, "${1}${2}***");
    let text = QUOTED.replace_all(&text, |found: &Captures<'_>| {
        let quote = &found[3][..1];
        of_secret(found, &format!("{quote}{MASK}{quote}"))
    });
    if !bare {
        return text.into_owned();
    }
    let text = BARE.replace_all(&text, |found: &Captures<'_>| of_secret(found, MASK));
    text.into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(given: &[&str]) -> Vec<String> {
        let given: Vec<_> = given.iter().map(|it| (*it).to_owned()).collect();
        masked_arguments(&given)
    }

    #[test]
    fn names_of_secrets_are_told_from_those_of_hyperparameters() {
        for secret in [
            "password",
            "--password",
            "db.password",
            "DB_PASSWORD",
            "--dbpassword",
            "passwd",
            "--pwd",
            "token",
            "hf-token",
            "authToken",
            "AuthToken",
            "WANDB_API_KEY",
            "apikey",
            "--api-key",
            "aws_secret_access_key",
            "--AccessKeyId",
            "client_secret",
            "credentials",
            "private-key",
            "--key",
            "--openai-key",
            "wandb_key",
            "AccountKey",
            "--sas",
            "sig",
            "session-cookie",
        ] {
            assert!(is_secret_name(secret), "{secret}");
        }
        for open in [
            "lr",
            "max_tokens",
            "--num-tokens",
            "tokenizer",
            "key_dim",
            "author",
            "bypass_cache",
            "passes",
            "monkey",
            "keyword",
            "--batch-size",
        ] {
            assert!(!is_secret_name(open), "{open}");
        }
    }

    #[test]
    fn values_of_secret_options_are_masked_and_the_others_stay() {
        assert_eq!(
            arguments(&[
                "python",
                "-X",
                "dev",
                "train.py",
                "--lr",
                "0.1",
                "--password",
                "hush",
                "--token=hush",
                "+db.password=hush",
                "--api-key",
                "-hush",
                "--use-token",
                "--epochs",
                "3",
                "API_KEY=hush",
            ]),
            [
                "python",
                "-X",
                "dev",
                "train.py",
                "--lr",
                "0.1",
                "--password",
                "***",
                "--token=***",
                "+db.password=***",
                "--api-key",
                "***",
                "--use-token",
                "--epochs",
                "3",
                "API_KEY=***",
            ]
        );
    }

    #[test]
    fn the_password_of_an_account_option_is_masked() {
        assert_eq!(
            arguments(&["python", "get.py", "-u", "me:hush", "--user", "me"]),
            ["python", "get.py", "-u", "me:***", "--user", "me"]
        );
    }

    #[test]
    fn accounts_in_arguments_are_masked() {
        for (given, expected) in [
            (
                "postgresql://me:hush@db:5432/ml",
                "postgresql://***@db:5432/ml",
            ),
            ("postgresql://me:hu/s@h@db/ml", "postgresql://***@db/ml"),
            (
                "--uri=https://hush@git.example/x",
                "--uri=https://***@git.example/x",
            ),
            ("me:hush@host", "***@host"),
            ("--proxy=me:hush@host:80", "--proxy=***@host:80"),
            ("me:hu@sh@host", "***@host"),
            (
                "http://host/?user=me&token=hush&x=1",
                "http://host/?user=me&token=***&x=1",
            ),
            ("Authorization: Bearer hush.hush", "Authorization: *** ***"),
            ("ghp_0123456789abcdefghij0123", "***"),
            (
                "DefaultEndpointsProtocol=https;AccountName=a;AccountKey=hush;EndpointSuffix=x",
                "DefaultEndpointsProtocol=https;AccountName=a;AccountKey=***;EndpointSuffix=x",
            ),
            (
                "https://a.blob.core.windows.net/c?sv=1&sig=hush",
                "https://a.blob.core.windows.net/c?sv=1&sig=***",
            ),
            ("x=hf_0123456789abcdefghij0123", "x=***"),
            (
                r#"{"db": {"password": "hush"}}"#,
                r#"{"db": {"password": "***"}}"#,
            ),
        ] {
            let masked = masked_argument(given);
            assert!(!masked.contains("hush"), "{masked}");
            assert_eq!(masked, expected);
        }
    }

    #[test]
    fn what_is_no_secret_stays_as_it_is() {
        for given in [
            "https://example.org:8080/a?b=c#d",
            "sqlite:////data/mlflow.db",
            "git@github.com:me/it.git",
            "me@example.org",
            "C:\\data",
            "data/run_1:2",
            "a=b",
            "model.layers=[1,2]",
            "s3://bucket/key",
        ] {
            assert_eq!(masked_argument(given), given);
        }
    }

    #[test]
    fn code_on_the_command_line_is_left_out() {
        assert_eq!(
            arguments(&["python", "-Ic", "connect('hush')", "--token", "hush", "x"]),
            ["python", "-Ic", "…", "--token", "***", "x"]
        );
        assert_eq!(
            arguments(&["python", "a.py", "-c", "b"]),
            ["python", "a.py", "-c", "b"]
        );
    }

    #[test]
    fn literals_and_keys_in_code_are_masked_and_the_code_stays() {
        let code = concat!(
            "+password = \"hu'sh\"\n+token = tokens[0]\n+db[\"api_key\"] = 'hush'\n",
            "+engine(\"postgresql://me:hush@db/ml\")\n+lr = 'fast'\n+f = lambda v: v@w\n",
            "+-----BEGIN RSA PRIVATE KEY-----\n+hush\n+-----END RSA PRIVATE KEY-----\n+end\n",
        );
        assert_eq!(
            masked_text(code, false),
            concat!(
                "+password = \"***\"\n+token = tokens[0]\n+db[\"api_key\"] = '***'\n",
                "+engine(\"postgresql://***@db/ml\")\n+lr = 'fast'\n+f = lambda v: v@w\n",
                "+-----BEGIN RSA PRIVATE KEY-----***\n+end\n",
            )
        );
    }

    #[test]
    fn bare_values_are_masked_where_there_is_no_code() {
        assert_eq!(
            masked_text("+password: hush\n+  API_KEY=hush\n+lr: 0.1\n", true),
            "+password: ***\n+  API_KEY=***\n+lr: 0.1\n"
        );
    }
}
