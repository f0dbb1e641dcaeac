//! libFuzzer on `src/requests.rs`.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    remoteprocess_fuzz::requests::run(input);
});
