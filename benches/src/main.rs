//! The command line of the scaling and latency suite.

mod cli;

fn main() -> std::process::ExitCode {
    seqzoo::heap::keep_freed_memory();
    cli::main()
}
