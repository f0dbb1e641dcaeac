//! `rproc`, also installed as `kubectl-rproc`: everything is in the library.

// musl's own allocator is slow, and every chunk of output is allocated.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    remoteprocess_tls::install_crypto_provider();
    remoteprocess_cli::main(std::env::args_os())
}
