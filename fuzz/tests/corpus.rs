//! Each input of the corpus through its target, without a fuzzer: what was found once is not found again.
//!
//! `UPDATE_CORPUS=1 cargo test -p remoteprocess-fuzz` writes the inputs to begin with, for example after a format changed.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use std::{env, fs};

use remoteprocess_fuzz::{ODD, TARGETS, Target};

/// Longest time for one target. It takes a small part of it.
const LIMIT: Duration = Duration::from_secs(20);
/// Size of all inputs together, in bytes.
const SIZE: u64 = 200 << 10;

fn folder(target: &Target) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target.name)
}

/// The inputs of a target, by name.
fn inputs(target: &Target) -> Vec<(String, Vec<u8>)> {
    let files = fs::read_dir(folder(target)).expect("the corpus");
    let mut inputs: Vec<_> = files
        .map(|file| {
            let path = file.expect("a file").path();
            let name = path.file_name().expect("a name").to_string_lossy().into_owned();
            (name, fs::read(path).expect("an input"))
        })
        .collect();
    inputs.sort();
    inputs
}

fn update() {
    for target in TARGETS {
        let folder = folder(&target);
        fs::create_dir_all(&folder).expect("a folder");
        for (name, input) in (target.seeds)() {
            fs::write(folder.join(name), input).expect("written");
        }
    }
}

#[test]
fn every_input_is_judged_as_its_name_says() {
    if env::var_os("UPDATE_CORPUS").is_some() {
        update();
    }
    for target in TARGETS {
        let begun = Instant::now();
        for (name, input) in inputs(&target) {
            let taken = (target.run)(&input);
            assert_eq!(taken, !name.starts_with(ODD), "{}/{name}", target.name);
        }
        assert!(begun.elapsed() < LIMIT, "{} took {:?}", target.name, begun.elapsed());
    }
}

#[test]
fn the_corpus_is_complete_and_small() {
    let mut size = 0;
    for target in TARGETS {
        let inputs = inputs(&target);
        for (seed, _) in (target.seeds)() {
            assert!(
                inputs.iter().any(|(name, _)| name == seed),
                "{}/{seed} is missing",
                target.name
            );
        }
        size += inputs.iter().map(|(_, input)| input.len() as u64).sum::<u64>();
    }
    assert!(size <= SIZE, "{size} bytes");
}

#[test]
fn what_is_made_now_is_judged_as_what_is_stored() {
    for target in TARGETS {
        for (name, input) in (target.seeds)() {
            assert_eq!((target.run)(&input), !name.starts_with(ODD), "{}/{name}", target.name);
            // A torn input is judged, too, whatever it says.
            for length in (0..input.len()).step_by(input.len() / 8 + 1) {
                (target.run)(&input[..length]);
            }
        }
    }
}

#[test]
fn each_target_has_its_program() {
    let manifest = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml")).expect("the manifest");
    let programs = manifest.split("[[bin]]").skip(1);
    let names: Vec<_> = programs.filter_map(|program| program.split('"').nth(1)).collect();
    assert_eq!(names, TARGETS.map(|target| target.name));
}
