//! libFuzzer on `src/archive.rs`.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    remoteprocess_fuzz::archive::run(input);
});
