//! libFuzzer on `src/messages.rs`.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    remoteprocess_fuzz::messages::run(input);
});
