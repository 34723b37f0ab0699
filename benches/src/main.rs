//! The command line of the scaling and latency suite.

mod cli;

fn main() -> std::process::ExitCode {
    cli::main()
}
