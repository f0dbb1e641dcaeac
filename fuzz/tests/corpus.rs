//! Each input of the corpus through its target, without a fuzzer: what was found once is not found again.
//!
//! `FUZZ_ROUNDS=N` sets how many damaged forms of each input are tried, for machines without a C++ compiler.
//! `UPDATE_CORPUS=1 cargo test -p remoteprocess-fuzz` writes the inputs to begin with, for example after a format changed.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use std::{env, fs};

use remoteprocess_fuzz::{ODD, TARGETS, Target};

/// Longest time for one target. It takes a small part of it.
const LIMIT: Duration = Duration::from_secs(20);
/// Damaged forms of each input in a normal run.
const ROUNDS: u64 = 50;
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
            // The target also takes an input that is cut off.
            for length in (0..input.len()).step_by(input.len() / 8 + 1) {
                (target.run)(&input[..length]);
            }
        }
    }
}

/// A sequence of numbers that looks random and is the same each time (splitmix64).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut number = self.0;
        number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        number ^ (number >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % limit.max(1) as u64).expect("below a usize")
    }
}

/// The input with one to four changes; some bytes come from `other`.
fn damaged(input: &[u8], other: &[u8], numbers: &mut Numbers) -> Vec<u8> {
    let mut input = input.to_vec();
    for _ in 0..=numbers.below(4) {
        let at = numbers.below(input.len());
        let end = (at + 1 + numbers.below(12)).min(input.len());
        match numbers.below(7) {
            0 if !input.is_empty() => input[at] ^= 1 << numbers.below(8),
            1 if !input.is_empty() => input[at] = numbers.next().to_le_bytes()[0],
            2 => input.truncate(at),
            3 if at < end => drop(input.drain(at..end)),
            4 if at < end => input[at..end].fill([0, 0x7f, 0xff][numbers.below(3)]),
            5 if at < end => {
                let again = input[at..end].to_vec();
                input.splice(at..at, again);
            }
            _ => {
                let from = numbers.below(other.len());
                let part = &other[from..(from + 1 + numbers.below(12)).min(other.len())];
                input.splice(at..at, part.iter().copied());
            }
        }
    }
    input
}

#[test]
fn damaged_inputs_are_judged_too() {
    let rounds = env::var("FUZZ_ROUNDS").map_or(ROUNDS, |rounds| rounds.parse().expect("a number"));
    for target in TARGETS {
        let inputs = inputs(&target);
        for (index, (name, input)) in inputs.iter().enumerate() {
            for round in 0..rounds {
                let mut numbers = Numbers(round << 8 | index as u64);
                let other = &inputs[numbers.below(inputs.len())].1;
                let damaged = damaged(input, other, &mut numbers);
                let judged = std::panic::catch_unwind(|| (target.run)(&damaged));
                assert!(judged.is_ok(), "{}/{name}, round {round}: {damaged:?}", target.name);
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
