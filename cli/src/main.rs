//! `rproc`, also installed as `kubectl-rproc`: everything is in the library.

fn main() -> std::process::ExitCode {
    remoteprocess_tls::install_crypto_provider();
    remoteprocess_cli::main(std::env::args_os())
}
