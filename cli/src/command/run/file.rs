//! Reads the process from a file.

use std::io::Read;
use std::path::Path;

use kube::core::DynamicObject;
use remoteprocess_api::names;
use serde_json::{Value, json};

use super::flags::RunArgs;
use crate::failure::Failure;

/// Maximum size of a file: an API server accepts no larger request.
const MAX_FILE: u64 = 3 << 20;

/// Reads the object, and sets the name, the input and the terminal according to the flags.
pub(super) fn read(path: &Path, args: &RunArgs) -> Result<DynamicObject, Failure> {
    let wrong = |why: String| Failure::new(format!("-f {}: {why}", path.display()));
    if path == Path::new("-") && args.view.stdin {
        return Err(wrong(
            "standard input is the file, so it cannot be the command's: leave -i out".to_owned(),
        ));
    }
    let text = text(path).map_err(|error| wrong(error.to_string()))?;
    object(&text, args).map_err(wrong)
}

fn text(path: &Path) -> std::io::Result<String> {
    let source: Box<dyn Read> = match path == Path::new("-") {
        true => Box::new(std::io::stdin()),
        false => Box::new(std::fs::File::open(path)?),
    };
    let mut text = String::new();
    match source.take(MAX_FILE + 1).read_to_string(&mut text)? as u64 {
        ..=MAX_FILE => Ok(text),
        _ => Err(std::io::Error::other(format!("it is larger than {MAX_FILE} bytes"))),
    }
}

fn object(text: &str, args: &RunArgs) -> Result<DynamicObject, String> {
    let mut object: Value = serde_saphyr::from_str(text).map_err(|error| error.to_string())?;
    let (kind, version) = (&object["kind"], &object["apiVersion"]);
    let ours = format!("{}/{}", names::GROUP, names::VERSION);
    if kind != "RemoteProcess" || version != &json!(ours) {
        return Err(format!(
            "expected one RemoteProcess ({ours}), and it is a {kind} ({version})"
        ));
    }
    if !object["metadata"].is_object() || !object["spec"].is_object() {
        return Err("it has no metadata or no spec".to_owned());
    }
    if let Some(name) = &args.name {
        object["metadata"]["name"] = json!(name);
    }
    for (field, _) in [("stdin", args.view.stdin), ("tty", args.view.tty)]
        .iter()
        .filter(|(_, is_given)| *is_given)
    {
        object["spec"][*field] = json!(true);
    }
    serde_json::from_value(object).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Only {
        #[command(flatten)]
        args: RunArgs,
    }

    const TEXT: &str = "apiVersion: remoteprocess.dev/v1alpha1\nkind: RemoteProcess\nmetadata:\n  name: job\nspec:\n  \
                        image: i\n  command: [x]\n  color: blue\n";

    fn read(text: &str, words: &[&str]) -> Result<Value, String> {
        let args = Only::try_parse_from([&["run", "-f", "x"], words].concat())
            .unwrap()
            .args;
        object(text, &args).map(|object| serde_json::to_value(object).unwrap())
    }

    #[test]
    fn a_file_is_one_process_as_it_is_written() {
        let plain = read(TEXT, &[]).unwrap();
        assert_eq!(
            (&plain["metadata"]["name"], &plain["spec"]["color"]),
            (&json!("job"), &json!("blue")),
            "the API server judges unknown fields"
        );
        let other = read(TEXT, &["other", "-it"]).unwrap();
        assert_eq!(other["metadata"]["name"], "other");
        assert_eq!(
            (&other["spec"]["stdin"], &other["spec"]["tty"]),
            (&json!(true), &json!(true))
        );
        assert!(
            read("kind: Pod\napiVersion: v1\n", &[])
                .unwrap_err()
                .contains("expected one RemoteProcess")
        );
        assert!(read(&format!("{TEXT}---\n{TEXT}"), &[]).is_err(), "two");
        assert!(read("", &[]).is_err());
    }

    #[test]
    fn a_file_says_all_and_takes_no_flags_of_the_specification() {
        for words in [&["--image", "i"][..], &["-e", "A=b"], &["--merge"], &["--", "x"]] {
            assert!(
                Only::try_parse_from([&["run", "-f", "x"], words].concat()).is_err(),
                "{words:?}"
            );
        }
        assert!(Only::try_parse_from(["run"]).is_err());
    }
}
