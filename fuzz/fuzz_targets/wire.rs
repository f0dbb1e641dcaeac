//! libFuzzer on `src/wire.rs`.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    remoteprocess_fuzz::wire::run(input);
});
