//! The command line of seqzoo.

mod cli;

fn main() -> std::process::ExitCode {
    cli::main()
}
